"""Start a system's training from the recipe's base, or from an earlier model of the same run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs

if TYPE_CHECKING:
    from prefrec.recipe import Recipe

START: Any = Field(None, description="Earlier language model to start from, such as sft. Default: the base model.")


def from_start(inputs: RunInputs, start: RankerStage | None) -> RunInputs:
    """Return the inputs with the model of `start` as their base; `inputs` if it is None, or the base itself."""
    if start is None or start.weights is None:
        return inputs
    whole = {"name": str(start.weights), "layers": None, "random_weights": False}
    return replace(inputs, model=inputs.model.model_copy(update=whole))


def start_key(start: RankerStage | None) -> dict[str, str]:
    """Return the starting model's part of a stage's key."""
    return {"start": start.key} if start else {}


def start_needs(config: Any) -> dict[str, list[str]]:
    """Return the ranker that a configuration starts from, in the form of `RankerConfig.needs`."""
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
