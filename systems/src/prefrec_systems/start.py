"""Start a system's training from the recipe's base, or from an earlier model of the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.recipe import Recipe

START: Any = Field(None, description="Earlier language model to start from, such as sft. Default: the base model.")


def from_start(inputs: RunInputs, start: str | None, before: Mapping[str, Entry]) -> tuple[RunInputs, Entry | None]:
    """Return the inputs with the model `start` as their base, and its entry; `inputs` and None if `start` is None."""
    if start is None:
        return inputs, None
    entry = before[start]
    whole = {"name": str(entry.weights), "layers": None, "random_weights": False}
    return replace(inputs, model=inputs.model.model_copy(update=whole)), entry


def start_key(entry: Entry | None) -> dict[str, str]:
    """Return the starting model's part of a stage's key."""
    return {"start": entry.key} if entry else {}


def start_needs(config: Any) -> dict[str, Sequence[str]]:
    """Return the ranker that a configuration starts from, in the form of `RankerKind.needs`."""
    return {"start": [config.start]} if config.start else {}


def check_start(config: Any, recipe: Recipe) -> None:
    """Raise ValueError if `start` is not a whole language model of the recipe."""
    if config.start is None:
        return
    where = f"rankers.{config.name}.start"
    if config.start not in recipe.lm_rankers:
        known = ", ".join(recipe.lm_rankers)
        raise ValueError(f"{where}: {config.start} is not a language model of this recipe; choose one of {known}")
    if recipe.lora is not None:
        raise ValueError(f"{where}: {config.start} is an adapter, not a whole model: set `lora: null`")
