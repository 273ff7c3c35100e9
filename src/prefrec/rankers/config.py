"""What a recipe may list under `rankers:`: one configuration class a kind."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from prefrec.data import config_error

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


RANKER_CONFIGS: dict[str, type[RankerConfig]] = {}
"""Kind → its configuration class."""


def ranker_config(raw: Any) -> RankerConfig:
    """The configuration of one entry of a recipe's `rankers`: a mapping whose `kind` says what the rest means.

    Raises:
        ValueError: there is no such kind, or a field is wrong.
    """
    if isinstance(raw, RankerConfig):
        return raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in RANKER_CONFIGS:
        raise ValueError(f"each entry needs a kind, one of {', '.join(sorted(RANKER_CONFIGS))}; got {kind!r}")
    try:
        return RANKER_CONFIGS[kind].model_validate(raw)
    except ValidationError as e:
        raise ValueError(f"{kind}: {config_error(e)}") from e
