"""What a training stage was made with, in plain words in its `stage.json`: a key tells that it was something else,
not what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prefrec.files import read_json
from prefrec.lm.models import same_base
from prefrec.pipeline.entry import Entry
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.kinds import SEQUENTIAL
from prefrec.pipeline.recipe import SFT, LoraSection, ModelSection, Recipe
from prefrec.prompts import load_template
from prefrec.runs.stage import STAGE_FILE, stage_key

MADE_WITH = "made_with"
"""In `stage.json`: what decides the outcome beside the stage's own `config`."""


def made_with(made_of: Ingredients, start: Entry | None = None, judge: Entry | None = None) -> dict[str, Any]:
    """What decides a training stage of a language model, beside its own section.

    Args:
        made_of: data, model, form of the adapter, seed.
        start: what it goes on from.
        judge: the recommender that chooses its negatives.
    """
    told: dict[str, Any] = {
        "data": made_of.data_key,
        "seed": made_of.seed,
        "model": made_of.model.model_dump(mode="json"),
        "lora": made_of.lora.model_dump(mode="json") if made_of.lora else None,
        "prompts": _prompts(made_of.model, made_of.data.domain),
        "start": None,
    }
    if start is not None and start.weights is not None:
        state = _state(start.weights.parent)
        told["start"] = {"name": start.name, "config": state.get("config"), **_start_of(state)}
    if judge is not None and judge.weights is not None:
        told["judge"] = _state(judge.weights).get("config")
    return told


def changed_since(name: str, state: dict[str, Any], recipe: Recipe, data_key: str, domain: str) -> list[str] | None:
    """Fields of the recipe that a ranker's stage was made with other values of; [] where there are none.

    None: the stage was made before this was noted. Settings that decide nothing do not count, nor does the name of a
    base whose folder may only have been moved.

    Args:
        name: of the ranker.
        state: of its stage.
        recipe: that lies in the run's folder now.
        data_key: of the prepared data that lie there.
        domain: of these.
    """
    told = state.get(MADE_WITH)
    if not isinstance(told, dict):
        return None
    found = ["data"] if told.get("data") != data_key else []
    found += ["seed"] if told.get("seed") != recipe.seed else []
    model = _changed("model", recipe.model, told.get("model"))
    if "model.name" in model and same_base(str(told["model"]["name"]), recipe.model.name) is not False:
        model.remove("model.name")
    if not model and told.get("prompts") != _prompts(recipe.model, domain):
        model = ["the text of model.templates"]
    found += [*model, *_lora_changed(recipe.lora, told.get("lora"))]
    align = next((a for a in recipe.align if a.name == name), None)
    if align is not None:
        found += _changed(f"align.{name}", align, state.get("config"))
        judge = next((s for s in recipe.sequential if s.model == align.negatives_judge), None)
        found += _changed(f"{SEQUENTIAL}.{judge.model}", judge, told.get("judge")) if judge else []
        return found + _earlier([SFT], recipe, told)
    section = recipe.sft if name == SFT else None
    found += _changed(name, section, state.get("config")) if section is not None else []
    return found


def _lora_changed(lora: LoraSection | None, told: Any) -> list[str]:
    if lora is None or told is None:
        return [] if lora is None and told is None else ["lora"]
    return _changed("lora", lora, told)


def _earlier(names: Sequence[str], recipe: Recipe, told: dict[str, Any]) -> list[str]:
    """Fields of the stages before one, of which `names` may be, the nearest first, that have changed."""
    for place, name in enumerate(names):
        section = getattr(recipe, name)
        start = told.get("start") or {}
        was_there = start.get("name") == name
        if "start" not in told or (section is None and not was_there):
            continue
        if section is None or not was_there:
            return [name]
        return [*_changed(name, section, start.get("config")), *_earlier(names[place + 1 :], recipe, start)]
    return []


def _changed(place: str, section: BaseModel, told: Any) -> list[str]:
    """Fields of a section, below `place`, that have other values in `told`, of those that decide something."""
    try:
        before = type(section).model_validate(told)
    except ValidationError:  # of another version, whose fields are not known here
        return []
    now, then = _decisive(section), _decisive(before)
    fields = [f for f in {**now, **then} if getattr(section, f) != getattr(before, f)]
    return [f"{place}.{field}" for field in fields]


def _decisive(section: Any) -> dict[str, Any]:
    found: dict[str, Any] = section.decisive() if hasattr(section, "decisive") else section.model_dump()
    return found


def _prompts(model: ModelSection, domain: str) -> str:
    """What the model's templates say, as a hash."""
    return stage_key(texts=[load_template(name, domain=domain).source for name in model.templates])


def _start_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a stage says that it went on from; nothing where it does not say it."""
    told = state.get(MADE_WITH)
    return {"start": told["start"]} if isinstance(told, dict) and "start" in told else {}


def _state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / STAGE_FILE)
    return state if isinstance(state, dict) else {}
