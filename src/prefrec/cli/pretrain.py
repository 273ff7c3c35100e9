"""`prefrec pretrain`: histories as running text, before SFT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import prepared_digest, read_prepared
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.recipe import LoraSection, PretrainSection
from prefrec.pipeline.run import pretrain_stage


def pretrain(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for adapter, log and checkpoints.")],
    titles: Annotated[int, typer.Option(help="Longest sequence; longer histories give several.")] = 40,
    model: o.Model = "smollm2-135m",
    dtype: o.Dtype = "bfloat16",
    max_length: o.MaxLength = 1024,
    template: o.Templates = None,
    rows: o.Rows = None,
    epochs: o.Epochs = 1.0,
    learning_rate: o.LearningRate = 1e-3,
    global_batch_size: o.GlobalBatch = 8,
    per_device_batch_size: o.DeviceBatch = 4,
    lora_rank: o.Rank = 16,
    seed: o.Seed = 0,
) -> None:
    """Teach a LoRA adapter what is taken, and after what: every title of a history from the titles before it.

    Optional, and cheap: a sequence teaches up to 40 titles, a ranking question one. Only training interactions are
    read. The same command goes on from the last checkpoint.

    Example: prefrec pretrain data/ml runs/pretrain --rows 640
    """
    settings = {
        "titles": titles,
        "rows": rows,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "global_batch_size": global_batch_size,
        "per_device_batch_size": per_device_batch_size,
    }
    prepared = read_prepared(data)
    asked = o.model_section(model, dtype, max_length, False, template)
    made_of = Ingredients(prepared, prepared_digest(data), asked, o.fill(LoraSection, r=lora_rank), seed)
    entry = pretrain_stage(made_of, o.fill(PretrainSection, **settings), out)
    typer.echo(f"Adapter: {entry.adapter}")
