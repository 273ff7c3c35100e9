"""Configuration that all entries of a recipe's `rankers:` share. `prefrec.stages` finds the kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from prefrec.data import PreparedData
from prefrec.settings import Section

NAME = r"^[A-Za-z0-9][\w.-]*$"
"""Pattern of the names of runs and rankers, which are also names of files and folders."""

BATCH_SIZE = 8
"""Default of the examples per pass of a ranker."""


def fit_for_a_name(text: str) -> str:
    """Return a text without what `NAME` does not allow; it may become empty."""
    return re.sub(r"^[\W_]+|[^\w.-]", "", text, flags=re.ASCII)


class RankerConfig(Section):
    """Fields of every kind of ranker, and what it needs. Each kind sets defaults for both fields."""

    kind: str = Field(description="Kind of the ranker.")
    name: str = Field(description="Name in tables, and of the ranker's folder.")

    @classmethod
    def default_name(cls, raw: Mapping[str, Any]) -> str:
        """Return the name of an entry with these values and no `name`."""
        return str(cls.model_fields["name"].default)

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return field → names of the earlier rankers and baselines that the ranker depends on."""
        return {}

    def check_recipe(self, recipe: Any, before: Sequence[str]) -> None:
        """Raise ValueError if the recipe lacks what this entry needs.

        Args:
            recipe: the `Recipe`.
            before: names of the earlier rankers.
        """

    def check_data(self, data: PreparedData) -> None:
        """Raise ConfigError if the data lack what this entry needs. Called before any training."""

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        # Not a pattern of the field: a kind that redefines the field for its default name would lose the pattern.
        if not re.match(NAME, name):
            raise ValueError(
                f"{name!r} cannot name a ranker: use letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        return name
