"""Each source, read with the settings of a `PrepareConfig` as keywords."""

from pathlib import Path
from typing import Any

from prefrec.intake import PrepareConfig
from prefrec.intake.sources import Source


def read(source: str, **settings: Any) -> Source:
    config = PrepareConfig(source=source, **settings)
    found = config.kind.read(config)
    assert isinstance(found, Source)
    return found


SETTINGS = (
    "encoding",
    "duplicate_titles",
    "missing_titles",
    "missing_times",
    "missing_users",
    "kinds",
    "targets",
    "users",
)


def files(interactions: Path, items: Path, **given: Any) -> Source:
    """Some of these settings; what else is given are names of columns."""
    own = {name: given.pop(name) for name in SETTINGS if name in given}
    return read("files", interactions=interactions, items=items, columns=given, **own)


def goodreads(interactions: Path, books: Path, **settings: Any) -> Source:
    return read("goodreads", interactions=interactions, items=books, **settings)


def goodreads_windows(path: Path, **settings: Any) -> Source:
    return read("goodreads-windows", path=path, **{"min_history": 1} | settings)


def lastfm_hetrec(path: Path) -> Source:
    return read("lastfm-hetrec", path=path)


def lastfm_published(path: Path, **settings: Any) -> Source:
    return read("lastfm-published", path=path, **settings)


def movielens_100k(path: Path | None = None, missing_titles: str = "error") -> Source:
    return read("movielens-100k", path=path, missing_titles=missing_titles)


def movielens_csv(path: Path, missing_titles: str = "error") -> Source:
    return read("movielens-csv", path=path, missing_titles=missing_titles)


def windows(rows: dict[str, Path], titles: Path, **settings: Any) -> Source:
    return read("windows", row_files=rows, items=titles, **settings)
