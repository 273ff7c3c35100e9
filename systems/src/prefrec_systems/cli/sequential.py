"""`prefrec sequential`: GRU4Rec, Caser or SASRec on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import prepared_digest, read_prepared
from prefrec.pipeline.entry import Ingredients
from prefrec.pipeline.recipe import SEED, ModelSection
from prefrec_systems.sequential import SequentialConfig
from prefrec_systems.sequential.stage import sequential_stage


@o.from_sections
def sequential(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for the weights and the log.")],
    section: SequentialConfig,
    seed: o.Seed = SEED,
) -> None:
    """Train a sequential recommender, to stand beside language models on the same rows.

    The same command goes on from the last epoch.

    Example: prefrec sequential data/ml runs/SASRec --grid learning_rate=1e-3,3e-3

    Then: prefrec evaluate data/ml --sequential runs/SASRec
    """
    made_of = Ingredients(read_prepared(data), prepared_digest(data), ModelSection(), None, seed)
    sequential_stage(made_of, section, out, {})
    typer.echo(f"Weights: {out / 'model.safetensors'}")
