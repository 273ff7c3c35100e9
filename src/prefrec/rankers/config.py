"""What every entry of a recipe's `rankers:` has; `prefrec.rankers.kinds` lists the kinds."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, field_validator

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
