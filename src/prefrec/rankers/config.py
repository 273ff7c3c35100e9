"""The configuration that all entries of a recipe's `rankers:` share; `prefrec.pipeline.kinds` finds the kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from prefrec.data.config import Section, config_error
from prefrec.errors import ConfigError, nearest

NAME = r"^[A-Za-z0-9][\w.-]*$"
"""Pattern of the names of runs and rankers, which are also those of files and folders."""


class RankerConfig(Section):
    """Fields of every kind of ranker. Each kind has defaults for both."""

    kind: str = Field(description="Kind of the ranker.")
    name: str = Field(description="Name in the tables, and of the folder.")

    @classmethod
    def default_name(cls, raw: Mapping[str, Any]) -> str:
        """Return the name of an entry with these values that gives none."""
        return str(cls.model_fields["name"].default)

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
