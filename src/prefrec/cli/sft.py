"""`prefrec sft`: supervised fine-tuning on prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.console import warn
from prefrec.data import prepared_digest, read_prepared
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.pipeline.entry import MADE_WITH, Entry, Ingredients, lm_entry
from prefrec.pipeline.plan import sft_step
from prefrec.pipeline.recipe import SEED, LoraSection, ModelSection, SFTSection
from prefrec.pipeline.rows import check_section, check_titles, warn_of_idle_dropout
from prefrec.runs.lock import stage_lock
from prefrec.runs.stage import STAGE_FILE, check_whole, read_state
from prefrec.training.adapters import check_adapter, is_adapter
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
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter to continue, trained on --model. Default: a new one.")
    ] = None,
    seed: o.Seed = SEED,
) -> None:
    """Fine-tune a LoRA adapter to predict each user's next item.

    The loss covers the title's tokens only. The same command resumes from the last checkpoint.

    Example: prefrec sft data/ml runs/sft --rows 1200
    """
    with stage_lock(out):
        ingredients, start = begin(data, section, model, lora, adapter, seed)
        typer.echo(f"Adapter: {sft_step(ingredients, section, out, start).run().weights}")


def begin(
    data: Path, section: RowsSection, model: ModelSection, lora: LoraSection, adapter: Path | None, seed: int
) -> tuple[Ingredients, Entry | None]:
    """Return the ingredients of a stage, and what it continues, after a check of the rows and the adapter."""
    prepared, model = read_prepared(data), as_trained(model, adapter)
    check_section(section, prepared, model, seed, o.option)
    check_titles(prepared, model)
    warn_of_idle_dropout(lora, {"this stage": section})
    ingredients = Ingredients(prepared, prepared_digest(data), model, _form(lora, adapter), seed)
    return ingredients, lm_entry("start", adapter, prepared, model) if adapter else None


def as_trained(model: ModelSection, weights: Path | None) -> ModelSection:
    """Return the settings that weights were trained with, except for the fields that were set in `model`.

    It warns of fields that were set to something else. Weights without a record get `model`. Raise ModelError for an
    adapter that may not be read, DataError if a stage made the weights and they are damaged.
    """
    if weights is None:
        return model
    if is_adapter(weights):
        check_adapter(weights)
    if (weights.parent / STAGE_FILE).exists():
        check_whole(weights.parent)
    try:
        recorded = read_state(weights.parent)[MADE_WITH]["model"]
        trained = ModelSection.model_validate(recorded)
    except (KeyError, TypeError, ValidationError):  # weights from elsewhere, or from another version
        return model
    given = {field: getattr(model, field) for field in model.model_fields_set}
    # Of another base `load_adapter` warns.
    for field in sorted((recorded.keys() | {"item_text"}) & given.keys() - {"name"}):
        if (value := getattr(trained, field)) not in (given[field], "auto"):
            name = o.option("model", field)
            warn(
                escape(
                    f"{name} {given[field]}: {weights} was trained with {value}; leave {name} out to "
                    "query it as it was trained"
                )
            )
    return trained.model_copy(update=given)


def _form(lora: LoraSection, adapter: Path | None) -> LoraSection | None:
    """Return the form of a new adapter; one to continue keeps its own. None means all weights go on.

    Raise ConfigError if an option asks for another form than that of the adapter to continue.
    """
    if adapter is not None and adapter.is_dir() and not is_adapter(adapter):
        if lora.model_fields_set:
            name = o.option("lora", min(lora.model_fields_set))
            raise ConfigError(
                f"{name}: {adapter} is a whole model, all of whose weights are trained; leave {name} out"
            )
        return None
    kept = read_json(adapter / "adapter_config.json") if adapter else {}
    if not kept:
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
