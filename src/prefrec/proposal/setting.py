"""A setting that `prefrec init` proposes."""

from __future__ import annotations

from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A dotted field of `PrepareConfig`, its value, and the reason: `sure: …`, `check: …` or a fact."""

    field: str
    value: Any
    why: str
