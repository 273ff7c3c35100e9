"""`prefrec sequential`: GRU4Rec, Caser or SASRec on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import prepared_digest, read_prepared
from prefrec.pipeline.entry import Ingredients
from prefrec.pipeline.recipe import ModelSection
from prefrec_systems.sequential import SequentialConfig
from prefrec_systems.sequential.stage import sequential_stage


def sequential(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for the weights and the log.")],
    model: Annotated[str, typer.Option(help="GRU4Rec, Caser or SASRec.")] = "SASRec",
    epochs: Annotated[int, typer.Option(help="Most passes over the training rows.")] = 200,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation NDCG@10 that end training.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Training rows an optimiser step.")] = 2048,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="Of Adam, default 1e-3; repeatable: validation chooses.")
    ] = None,
    weight_decay: Annotated[
        list[float] | None, typer.Option(help="L2 penalty, default 0; repeatable: validation chooses.")
    ] = None,
    seed: o.Seed = 0,
) -> None:
    """Train a sequential recommender by hopwise, to stand beside language models on the same rows.

    The same command goes on from the last epoch. Other sizes of the models are set in a recipe
    (`sequential: [{model: SASRec, settings: {hidden_size: 32}}]`).

    Example: prefrec sequential data/ml runs/SASRec --learning-rate 1e-3 --learning-rate 3e-3

    Then: prefrec evaluate data/ml --sequential runs/SASRec
    """
    grid = {"learning_rate": learning_rate or [], "weight_decay": weight_decay or []}
    settings = {"model": model, "epochs": epochs, "patience": patience, "batch_size": batch_size, "grid": grid}
    section = o.fill(SequentialConfig, **settings)
    made_of = Ingredients(read_prepared(data), prepared_digest(data), ModelSection(), None, seed)
    sequential_stage(made_of, section, out, {})
    typer.echo(f"Weights: {out / 'model.safetensors'}")
