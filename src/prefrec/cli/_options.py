"""Options that several verbs share, as the pydantic sections they fill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from prefrec.data import PreparedData, config_error
from prefrec.pipeline.entry import Entry, lm_entry
from prefrec.pipeline.recipe import ModelSection

Section = TypeVar("Section", bound=BaseModel)

Model = Annotated[str, typer.Option(help="smollm2-135m (embedded), a local folder, or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of a prompt with its longest answer.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap prompts by the tokenizer's chat template.")]
Templates = Annotated[
    list[str] | None, typer.Option("--template", help="Phrasing (1, movies/2) or jinja2 file; repeatable.")
]
Rows = Annotated[int | None, typer.Option(help="Rows to use; default all.")]
SkipRows = Annotated[int, typer.Option(help="Rows of the random order to leave out first.")]
LatestPerUser = Annotated[
    int | None, typer.Option(min=1, help="Only so many rows of each user, the latest; default all.")
]
Epochs = Annotated[float, typer.Option(help="Passes over the rows.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
GlobalBatch = Annotated[int, typer.Option(help="Rows an optimiser step, over all processes.")]
DeviceBatch = Annotated[int, typer.Option(help="Rows a forward pass.")]
Rank = Annotated[int, typer.Option(help="Rank of the LoRA adapter.")]
Seed = Annotated[int, typer.Option(help="Of rows, order and initial weights.")]


def fill(section: type[Section], **values: Any) -> Section:
    """The section with these values; a wrong one is a `ConfigError` that names it."""
    try:
        return section.model_validate(values)
    except ValidationError as e:
        raise config_error(e) from e


def option(field: str) -> str:
    """The option that sets a field of a section."""
    return f"--{field.replace('_', '-')}"


def model_section(
    model: str, dtype: str, max_length: int, chat: bool, template: Sequence[str] | None
) -> ModelSection:
    """The model section of these options; without a template the default of recipes."""
    templates = {"templates": list(template)} if template else {}
    return fill(ModelSection, name=model, dtype=dtype, max_length=max_length, chat=chat, **templates)


def start_of(adapter: Path | None, data: PreparedData, model: ModelSection) -> Entry | None:
    """Return what training goes on from."""
    return lm_entry("start", adapter, data, model) if adapter else None
