"""The configuration that all entries of a recipe's `rankers:` share; `prefrec.pipeline.kinds` finds the kinds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from prefrec.data import config_error
from prefrec.errors import ConfigError

NAME = r"^[A-Za-z0-9][\w.-]*$"
"""Pattern of the names of runs and rankers, which are also those of files and folders."""


class RankerConfig(BaseModel):
    """The fields of every kind: the kind, and the name in the tables. Each kind gives both a default."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    name: str

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        # A validator and not a pattern of the field, which a kind with its own default for the name would lose.
        if not re.match(NAME, name):
            raise ValueError(
                f"{name!r} cannot name a ranker: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return name


def settings_error(error: ValidationError, section: type[BaseModel]) -> ConfigError:
    """Return `config_error` of an error in `section`, with known fields that are spelt like the unknown ones."""
    near = [
        ".".join(map(str, (*e["loc"][:-1], name)))
        for e in error.errors()
        if e["type"] == "extra_forbidden"
        for name in difflib.get_close_matches(str(e["loc"][-1]), _fields(section, e["loc"][:-1]), n=2)
    ]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"{config_error(error)}{hint}")


def _fields(section: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the names of the fields at a location inside a section; none if it is not a section."""
    for name in (step for step in location if not isinstance(step, int)):
        field = section.model_fields.get(name)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section in an annotation such as `list[X]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part))), None)
