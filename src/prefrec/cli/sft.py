"""`prefrec sft`: supervised fine-tuning on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import prepared_digest, read_prepared
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.pipeline.entry import Entry, Ingredients, lm_entry
from prefrec.pipeline.recipe import SEED, LoraSection, ModelSection, SFTSection
from prefrec.pipeline.rows import check_section, warn_of_idle_dropout
from prefrec.pipeline.run import sft_stage
from prefrec.training.section import RowsSection

PEFT_NAMES = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}
"""Field of the `lora` section → field of a saved adapter's configuration."""


@o.from_sections
def sft(
    data: o.DataFolder,
    out: o.StageFolder,
    section: SFTSection,
    model: ModelSection,
    lora: LoraSection,
    adapter: Annotated[Path | None, typer.Option(help="Adapter to go on from; default: a new one.")] = None,
    seed: o.Seed = SEED,
) -> None:
    """Fine-tune a LoRA adapter to name the item that each user took next.

    The loss is on the title's tokens alone. The same command goes on from the last checkpoint.

    Example: prefrec sft data/ml runs/sft --rows 1200
    """
    ingredients, start = begin(data, section, model, lora, adapter, seed)
    typer.echo(f"Adapter: {sft_stage(ingredients, section, out, start).weights}")


def begin(
    data: Path, section: RowsSection, model: ModelSection, lora: LoraSection, adapter: Path | None, seed: int
) -> tuple[Ingredients, Entry | None]:
    """Return the ingredients of a stage, and what it goes on from, after a check of the rows and the adapter."""
    prepared = read_prepared(data)
    check_section(section, prepared, model, seed, o.option)
    warn_of_idle_dropout(lora, {"this stage": section})
    ingredients = Ingredients(prepared, prepared_digest(data), model, _form(lora, adapter), seed)
    return ingredients, lm_entry("start", adapter, prepared, model) if adapter else None


def _form(lora: LoraSection, adapter: Path | None) -> LoraSection:
    """Return the form of a new adapter; one to go on from keeps its own.

    Raises:
        ConfigError: an option asks for another form than that of the adapter to go on from.
    """
    kept = read_json(adapter / "adapter_config.json") if adapter else None
    if not isinstance(kept, dict):
        return lora
    # Options that were not given do not matter, whatever their defaults are.
    for field in sorted(lora.model_fields_set):
        value, adapter_value = getattr(lora, field), kept.get(PEFT_NAMES[field])
        if value != adapter_value:
            name = o.option("lora", field)
            raise ConfigError(
                f"{name} {value}: the adapter in {adapter} has {adapter_value} and keeps it; leave {name} out, or "
                "--adapter to train a new one"
            )
    return LoraSection()
