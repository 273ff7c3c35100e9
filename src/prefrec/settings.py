"""Settings checked by pydantic: the base class of all sections of a recipe, and errors that name the wrong field."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from prefrec.errors import ConfigError, did_you_mean, nearest

MOST = 2**32 - 1
"""Largest integer that a recipe may contain."""


class Section(BaseModel):
    """Settings of a recipe. Unknown fields, NaN, infinity and integers above `MOST` are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for number in parts:
            if isinstance(number, int) and abs(number) > MOST:
                raise ValueError(f"{number} is too large; the maximum is {MOST}")
        return value


def config_error(error: ValidationError, named: Callable[[tuple[Any, ...]], str] | None = None) -> ConfigError:
    """Return a `ConfigError` that names each wrong field, its value and what is expected.

    `named` turns the location of an error into the name that the user knows. Default: the dotted name.
    """
    lines = []
    for e in error.errors():
        where = named(e["loc"]) if named else ".".join(map(str, e["loc"]))
        message = e["msg"].removeprefix("Value error, ")
        given = "" if e["type"] in ("missing", "value_error") else f" (given: {e['input']!r})"
        if e["type"] == "literal_error":
            given += did_you_mean(e["input"], re.findall("'([^']+)'", e["ctx"]["expected"]))
        lines.append(f"{where}: {message}{given}" if where else message)
    return ConfigError("; ".join(lines))


def settings_error(error: ValidationError, section: type[BaseModel]) -> ConfigError:
    """Return `config_error` of an error in `section`, with known fields that are spelt like the unknown ones."""
    schema = section.model_json_schema()
    parts = (schema, *schema.get("$defs", {}).values())
    known = sorted({name for part in parts for name in part.get("properties", {})})
    near = [
        ".".join(map(str, (*e["loc"][:-1], name)))
        for e in error.errors()
        if e["type"] == "extra_forbidden"
        if (name := nearest(e["loc"][-1], known))
    ]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"{config_error(error)}{hint}")
