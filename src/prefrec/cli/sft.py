"""`prefrec sft`: supervised fine-tuning on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import read_prepared
from prefrec.pipeline.recipe import LoraSection, ModelSection, SFTSection
from prefrec.pipeline.train import train_sft


def sft(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for adapter, log and checkpoints.")],
    model: o.Model = "smollm2-135m",
    dtype: o.Dtype = "bfloat16",
    max_length: o.MaxLength = 1024,
    chat: o.Chat = False,
    template: o.Templates = None,
    rows: o.Rows = None,
    skip_rows: o.SkipRows = 0,
    epochs: o.Epochs = 1.0,
    learning_rate: o.LearningRate = 5e-4,
    global_batch_size: o.GlobalBatch = 16,
    per_device_batch_size: o.DeviceBatch = 4,
    lora_rank: o.Rank = 16,
    seed: o.Seed = 0,
) -> None:
    """Fine-tune a LoRA adapter to name the item that each user took next.

    The loss is on the title's tokens alone. Run again to go on from the last checkpoint.

    Example: prefrec sft data/ml runs/sft --rows 1200
    """
    settings = {
        "rows": rows,
        "skip_rows": skip_rows,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "global_batch_size": global_batch_size,
        "per_device_batch_size": per_device_batch_size,
    }
    adapter = train_sft(
        read_prepared(data),
        o.fill(
            ModelSection,
            name=model,
            dtype=dtype,
            max_length=max_length,
            chat=chat,
            templates=o.templates_or_default(template),
        ),
        o.fill(LoraSection, r=lora_rank),
        o.fill(SFTSection, **settings),
        out,
        seed=seed,
    )
    typer.echo(f"Adapter: {adapter}")
