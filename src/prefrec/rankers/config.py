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
"""What runs and rankers may be called: the names are also those of files and folders."""


class RankerConfig(BaseModel):
    """What every kind has: which kind it is, and its name in the tables. Each kind gives both a default."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    name: str

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        """Checked here, so that a kind's own default for the name does not lose the check."""
        if not re.match(NAME, name):
            raise ValueError(
                f"{name!r} is no name for a ranker: letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return name


def settings_error(error: ValidationError, section: type[BaseModel]) -> ConfigError:
    """As `config_error`; for each field that `section` does not know also the known ones that are spelt alike."""
    near = [
        ".".join(map(str, (*e["loc"][:-1], name)))
        for e in error.errors()
        if e["type"] == "extra_forbidden"
        for name in difflib.get_close_matches(str(e["loc"][-1]), _fields(section, e["loc"][:-1]), n=2)
    ]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"{config_error(error)}{hint}")


def _fields(section: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Names of the fields at a place inside a section; none where it cannot be told."""
    for step in place:
        if isinstance(step, int):
            continue
        field = section.model_fields.get(step)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as `list[X]` or `X | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
