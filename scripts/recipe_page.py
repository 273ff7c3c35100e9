"""Write docs/reference/recipe.md from the classes of recipes: `python scripts/recipe_page.py`."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prefrec.intake import CandidateConfig, PrepareConfig
from prefrec.intake.config import ColumnNames
from prefrec.rankers.config import RankerConfig
from prefrec.recipe import Recipe
from prefrec.sections import (
    AlignSection,
    AnswersSection,
    EvaluateSection,
    ItemsSection,
    LoraSection,
    ModelSection,
    RefitSection,
    SFTSection,
    UpdateSection,
)
from prefrec.stages import kind_names, stage_class
from prefrec.training.section import TrainSection
from prefrec_systems.endpoint import ServerSettings

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "recipe.md"
HEAD = """# Recipe

All fields of a recipe, section by section. Omitted fields take their defaults; – means null. Unknown fields are
errors. A recipe may name a preset (`preset: baselines`, `fast`, `titles` or `paper`), whose fields hold where the
recipe gives none. [Your own data](../own-data.md) has a recipe to start from.
"""
SECTIONS: dict[str, type[BaseModel]] = {
    "The whole": Recipe,
    "data": PrepareConfig,
    "data.columns": ColumnNames,
    "data.candidates": CandidateConfig,
    "model": ModelSection,
    "model.items": ItemsSection,
    "lora": LoraSection,
    "Training": TrainSection,
    "sft": SFTSection,
    "align": AlignSection,
    "evaluate": EvaluateSection,
    "refit": RefitSection,
    "answers": AnswersSection,
    "update": UpdateSection,
    "rankers": RankerConfig,
    **{f"rankers: {kind}": stage_class(kind).Config for kind in kind_names()},
    "rankers: server": ServerSettings,
}
"""Heading → class; a list in a recipe (`align`, `rankers`) has such entries."""
WORDS: dict[Any, str] = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_section(heading, model) for heading, model in SECTIONS.items())])


def _section(heading: str, model: type[BaseModel]) -> str:
    says = " ".join((model.__doc__ or "").split())
    fields = model.model_fields
    if issubclass(model, RankerConfig) and model is not RankerConfig:
        fields = {n: f for n, f in fields.items() if n not in RankerConfig.model_fields}
        says = f"{says} Default name: `{model.default_name({})}`."
    if issubclass(model, ServerSettings) and model is not ServerSettings:
        says += f" It also has the fields of [a server]({_anchor('rankers: server')})."
        fields = {n: f for n, f in fields.items() if n not in ServerSettings.model_fields}
    if issubclass(model, TrainSection) and model is not TrainSection:
        says += f" It also has the fields of all [training]({_anchor('Training')}) stages."
        fields = {n: f for n, f in fields.items() if _is_new(f, TrainSection.model_fields.get(n))}
    lines = [f"## {heading}", "", f"`{model.__module__}.{model.__name__}`: {says}"]
    lines += ["", "| field | default | takes | |", "|---|---|---|---|"]
    lines += [f"| `{n}` | {_default(f)} | {_takes(f)} | {_says(f)} |" for n, f in fields.items()]
    return "\n".join(lines) + "\n"


def _is_new(field: FieldInfo, shared: FieldInfo | None) -> bool:
    return shared is None or (field.default, field.description) != (shared.default, shared.description)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or value in ([], {}):
        return "–"
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{written}`"


def _takes(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(m, n):g}" for m in field.metadata for n, sign in SIGNS.items() if hasattr(m, n)]
    return " ".join([_words(field.annotation), ", ".join(bounds)]).strip()


def _words(kind: Any) -> str:
    """A type, for people."""
    origin, inner = get_origin(kind), [a for a in get_args(kind) if a is not type(None)]
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, reversed(inner)))
    if origin is list:
        what = _words(inner[0])
        return f"list of {what}s" if what in WORDS.values() else f"list of {what}"
    if origin is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        heading = next(h for h, model in SECTIONS.items() if model is kind)
        return f"[{heading}]({_anchor(heading)})"
    return WORDS[kind]


def _says(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


def _anchor(heading: str) -> str:
    return "#" + re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
