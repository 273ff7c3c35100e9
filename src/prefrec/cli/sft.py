"""`prefrec sft`: supervised fine-tuning on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import prepared_digest, read_prepared
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.recipe import LoraSection, SFTSection
from prefrec.pipeline.rows import check_section
from prefrec.pipeline.run import sft_stage

Rank = Annotated[
    int | None, typer.Option(help="Rank of a new adapter; default 16. One to go on from (--adapter) keeps its own.")
]


def lora_section(rank: int | None, adapter: Path | None) -> LoraSection:
    """The form of a new adapter; one to go on from keeps its own.

    Raises:
        ConfigError: the rank is not that of the adapter to go on from.
    """
    if adapter is None:
        return o.fill(LoraSection, **({} if rank is None else {"r": rank}))
    about = read_json(adapter / "adapter_config.json")
    own = about.get("r", rank) if isinstance(about, dict) else rank
    if rank not in (None, own):
        raise ConfigError(
            f"--lora-rank {rank}: the adapter in {adapter} keeps its rank, {own}; leave --lora-rank out, or "
            "--adapter to train a new one"
        )
    return LoraSection()


def sft(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for adapter, log and checkpoints.")],
    adapter: Annotated[
        Path | None,
        typer.Option(help="Adapter to go on from; default: a new one."),
    ] = None,
    model: o.Model = "smollm2-135m",
    dtype: o.Dtype = "auto",
    max_length: o.MaxLength = 1024,
    chat: o.Chat = False,
    template: o.Templates = None,
    rows: o.Rows = None,
    skip_rows: o.SkipRows = 0,
    latest_per_user: o.LatestPerUser = None,
    epochs: o.Epochs = 1.0,
    learning_rate: o.LearningRate = 5e-4,
    global_batch_size: o.GlobalBatch = 16,
    per_device_batch_size: o.DeviceBatch = 4,
    lora_rank: Rank = None,
    seed: o.Seed = 0,
) -> None:
    """Fine-tune a LoRA adapter to name the item that each user took next.

    The loss is on the title's tokens alone. The same command goes on from the last checkpoint.

    Example: prefrec sft data/ml runs/sft --rows 1200
    """
    settings = {
        "rows": rows,
        "skip_rows": skip_rows,
        "latest_per_user": latest_per_user,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "global_batch_size": global_batch_size,
        "per_device_batch_size": per_device_batch_size,
    }
    prepared = read_prepared(data)
    section = o.fill(SFTSection, **settings)
    asked = o.model_section(model, dtype, max_length, chat, template)
    check_section(section, prepared, asked, seed, o.option)
    made_of = Ingredients(prepared, prepared_digest(data), asked, lora_section(lora_rank, adapter), seed)
    entry = sft_stage(made_of, section, out, o.start_of(adapter, prepared, asked))
    typer.echo(f"Adapter: {entry.weights}")
