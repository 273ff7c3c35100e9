"""The model that a system's training starts from: the recipe's base, or an earlier model of the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.recipe import Recipe

START: Any = Field(None, description="Earlier language model to start from, such as sft; default: the bare base.")


def from_start(inputs: RunInputs, start: str | None, before: Mapping[str, Entry]) -> tuple[RunInputs, Entry | None]:
    """Return the ingredients with the weights of `start` as their base, and its entry; as they are if it is None."""
    if start is None:
        return inputs, None
    entry = before[start]
    whole = {"name": str(entry.weights), "layers": None, "random_weights": False}
    return replace(inputs, model=inputs.model.model_copy(update=whole)), entry


def start_key(entry: Entry | None) -> dict[str, str]:
    """Return what a stage's key holds of the model that it starts from."""
    return {"start": entry.key} if entry else {}


def start_needs(config: Any) -> dict[str, Sequence[str]]:
    """Return the ranker that a configuration starts from, as `RankerKind.needs` does."""
    return {"start": [config.start]} if config.start else {}


def check_start(config: Any, recipe: Recipe) -> None:
    """Raise ValueError if the recipe has no whole model of this name."""
    if config.start is None:
        return
    where = f"rankers.{config.name}.start"
    if config.start not in recipe.lm_rankers:
        known = ", ".join(recipe.lm_rankers)
        raise ValueError(f"{where}: {config.start} is not a language model of this recipe; there are {known}")
    if recipe.lora is not None:
        raise ValueError(f"{where}: {config.start} is an adapter and not a whole model: set `lora: null`")
