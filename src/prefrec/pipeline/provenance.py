"""The inputs of a training stage, in plain words in its `stage.json`: a key shows a change, but not which one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from prefrec.lm.models import same_base
from prefrec.pipeline.entry import Entry, Ingredients
from prefrec.pipeline.kinds import SEQUENTIAL
from prefrec.pipeline.recipe import SFT, AlignSection, ModelSection, Recipe
from prefrec.prompts import load_template
from prefrec.runs.stage import read_state, stage_key

MADE_WITH = "made_with"
"""Key in `stage.json` for the result-changing inputs other than the stage's own `config`."""


def made_with(made_of: Ingredients, start: Entry | None = None, judge: Entry | None = None) -> dict[str, Any]:
    """Return the result-changing inputs of a stage that trains a language model, other than its own section.

    `start` is the model that it continues from, and `judge` the recommender that chooses its negatives.
    """
    inputs: dict[str, Any] = {
        "data": made_of.data_key,
        "seed": made_of.seed,
        "model": made_of.model.model_dump(mode="json"),
        "lora": made_of.lora.model_dump(mode="json") if made_of.lora else None,
        "prompts": _prompts(made_of.model, made_of.data.domain),
        "start": None,
    }
    if start is not None and start.weights is not None:
        state = read_state(start.weights.parent)
        inputs["start"] = {"name": start.name, "config": state.get("config")}
        earlier = state.get(MADE_WITH)
        if isinstance(earlier, dict) and "start" in earlier:
            inputs["start"]["start"] = earlier["start"]
    if judge is not None and judge.weights is not None:
        inputs["judge"] = read_state(judge.weights).get("config")
    return inputs


def changed_since(name: str, state: dict[str, Any], recipe: Recipe, data_key: str, domain: str) -> list[str] | None:
    """Return the dotted names of result-changing fields whose value differs from the one a stage was made with.

    A base whose folder may only have been moved does not count. None: the stage did not record its inputs. Recipe,
    `data_key` and `domain` are those in the run's folder now; `name` and `state` are of the stage.
    """
    recorded = state.get(MADE_WITH)
    if not isinstance(recorded, dict):
        return None
    changed = ["data"] if recorded.get("data") != data_key else []
    changed += ["seed"] if recorded.get("seed") != recipe.seed else []
    model = _changed("model", recipe.model, recorded.get("model"))
    # A local base may have moved: another path to the same files is not another model.
    if "model.name" in model and same_base(str(recorded["model"]["name"]), recipe.model.name) is not False:
        model.remove("model.name")
    if not model and recorded.get("prompts") != _prompts(recipe.model, domain):
        model = ["the text of model.templates"]
    changed += model
    lora = recorded.get("lora")
    if recipe.lora is not None and lora is not None:
        changed += _changed("lora", recipe.lora, lora)
    elif recipe.lora is not None or lora is not None:
        changed.append("lora")
    align = next((a for a in recipe.align if a.name == name), None)
    if align is not None:
        changed += _changed(f"align.{name}", align, state.get("config"))
        judge = next((s for s in recipe.sequential if s.model == align.negatives_judge), None)
        changed += _changed(f"{SEQUENTIAL}.{judge.model}", judge, recorded.get("judge")) if judge else []
        changed += _changed_start(align, recipe, recorded)
    elif name == SFT and recipe.sft is not None:
        changed += _changed(SFT, recipe.sft, state.get("config"))
    return changed


def _changed_start(align: AlignSection, recipe: Recipe, recorded: dict[str, Any]) -> list[str]:
    """Return the changed fields of the stages that an alignment started from, the nearest stage first."""
    if "start" not in recorded:
        return []
    start = recorded["start"] or {}
    name = align.start or (SFT if recipe.sft else None)
    if start.get("name") != name:
        return [align.start or SFT]
    if align.start is None:
        return _changed(SFT, recipe.sft, start.get("config")) if recipe.sft else []
    before = next(a for a in recipe.align if a.name == align.start)
    return [*_changed(f"align.{name}", before, start.get("config")), *_changed_start(before, recipe, start)]


def _changed(prefix: str, section: BaseModel, recorded: Any) -> list[str]:
    """Return the names, after `prefix`, of a section's result-changing fields that differ from the recorded ones."""
    try:
        before = type(section).model_validate(recorded)
    except ValidationError:  # of another version, whose fields are not known here
        return []
    fields = {**_decisive(section), **_decisive(before)}
    return [f"{prefix}.{field}" for field in fields if getattr(section, field) != getattr(before, field)]


def _decisive(section: Any) -> dict[str, Any]:
    settings: dict[str, Any] = section.decisive() if hasattr(section, "decisive") else section.model_dump()
    return settings


def _prompts(model: ModelSection, domain: str) -> str:
    """Return a hash of the text of the model's templates."""
    return stage_key(texts=[load_template(name, domain=domain).source for name in model.templates])
