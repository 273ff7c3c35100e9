"""The rankers that a refit makes again with `refit.rankers: served`: those that serve, once a run has chosen them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefrec.files import read_json, write_json

REFIT = "refit"
"""Folder of the stages that also learn validation interactions: it has `sft`, `align` and `rankers`, as a run has."""
SERVED = "served.json"
"""File in it: names of the rankers that serve."""


def only_served(recipe: dict[str, Any]) -> bool:
    """Return True if only the rankers that serve are refit, by a raw recipe."""
    section = recipe.get(REFIT)
    return isinstance(section, dict) and section.get("rankers") == "served"


def read_served(folder: Path) -> list[str] | None:
    """Return the names of a run's rankers that serve; None if they are not chosen yet.

    Args:
        folder: of the run.
    """
    names = read_json(folder / REFIT / SERVED).get("rankers")
    return [str(name) for name in names] if isinstance(names, list) else None


def write_served(folder: Path, names: Sequence[str]) -> None:
    """Write what `read_served` returns."""
    (folder / REFIT).mkdir(parents=True, exist_ok=True)
    write_json(folder / REFIT / SERVED, {"rankers": [*names]})
