"""Readers of public data sets and of the user's files, by name. Other packages can add more."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from prefrec.errors import did_you_mean
from prefrec.intake.sources.base import GivenSplit, Source, SourceKind

__all__ = ["GivenSplit", "Source", "SourceKind"]

GROUP = "prefrec.sources"
"""Entry-point group for sources of other packages: NAME = "module:KIND", a `SourceKind`."""
_OURS = {
    "movielens-100k": "movielens:HUNDRED",
    "movielens-csv": "movielens:CSV",
    "windows": "windows:WINDOWS",
    "files": "files:FILES",
    "sequences": "sequences:SEQUENCES",
}


@cache
def source_kind(name: str) -> SourceKind:
    """Return the source with this name; raise ValueError if no installed package has it."""
    if name in _OURS:  # a search of all installed packages takes longer than the rest of the check
        entry = EntryPoint(name, f"{__name__}.{_OURS[name]}", GROUP)
    else:
        others = {e.name: e for e in entry_points(group=GROUP)}
        if name not in others:
            known = [*_OURS, *sorted(others)]
            lab = "" if "goodreads" in others else "; LastFM and Goodreads come with `pip install ./lab` in a clone"
            hint = did_you_mean(name, known) or lab
            raise ValueError(f"Input should be {', '.join(map(repr, known))} (given: {name!r}){hint}")
        entry = others[name]
    return entry.load()
