"""Readers of public data sets and of the user's own files, one module per source; each returns a `Source`."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from prefrec.data.config import SOURCES, PrepareConfig
from prefrec.data.sources.base import GivenSplit, Source
from prefrec.data.sources.files import files
from prefrec.data.sources.goodreads import find_files, goodreads, goodreads_windows
from prefrec.data.sources.lastfm import lastfm_hetrec, lastfm_published
from prefrec.data.sources.movielens import movielens_100k, movielens_csv
from prefrec.data.sources.windows import find_window_files, windows
from prefrec.errors import ConfigError

__all__ = [
    "GivenSplit",
    "Source",
    "files",
    "goodreads",
    "goodreads_windows",
    "lastfm_hetrec",
    "lastfm_published",
    "load_source",
    "movielens_100k",
    "movielens_csv",
    "windows",
]


def load_source(config: PrepareConfig) -> Source:
    """Read the source that `config` names.

    Raises:
        DataError: its files cannot be used.
        ConfigError: the configuration asks for something they do not have.
    """
    match config.source:
        case "movielens-100k":
            return movielens_100k(config.path, config.missing_titles)
        case "movielens-csv":
            return movielens_csv(_given(config.path, "path"), config.encoding, config.missing_titles)
        case "lastfm-hetrec":
            return lastfm_hetrec(_given(config.path, "path"))
        case "lastfm-published":
            return lastfm_published(
                _given(config.path, "path"), config.history_length, config.min_history, config.items
            )
        case "goodreads-windows":
            return goodreads_windows(
                _given(config.path, "path"), config.history_length, config.seed, config.min_history
            )
        case "goodreads":
            return _goodreads(config)
        case "windows":
            return _windows(config)
        case "files":
            return _files(config)
        case "published-json":
            raise ConfigError("published-json holds finished rows: `prefrec.data.prepare` reads it")
        case other:
            (found,) = entry_points(group=SOURCES, name=other)
            source: Source = found.load()(config)
            return source


def _goodreads(config: PrepareConfig) -> Source:
    if config.interactions and config.items:
        log, books = config.interactions, config.items
    else:
        log, books = find_files(_given(config.path, "path"))
    return goodreads(log, books, config.read_only, config.missing_titles, config.duplicate_titles or "merge")


def _files(config: PrepareConfig) -> Source:
    return files(
        _given(config.interactions, "interactions"),
        _given(config.items, "items"),
        **config.columns.model_dump(exclude={"item_list"}),
        encoding=config.encoding,
        duplicate_titles=config.duplicate_titles or "error",
        missing_titles=config.missing_titles,
        users=config.users,
    )


def _windows(config: PrepareConfig) -> Source:
    rows, titles = find_window_files(
        config.path, {str(part): f for part, f in (config.row_files or {}).items()}, config.items
    )
    return windows(
        rows,
        titles,
        config.columns,
        history_length=config.history_length,
        min_history=config.min_history,
        validation_share=config.validation_share,
        encoding=config.encoding,
        duplicate_titles=config.duplicate_titles or "number",
        missing_titles=config.missing_titles,
    )


def _given(path: Path | None, field: str) -> Path:
    if path is None:
        raise ConfigError(f"{field}: this source needs it")
    return path
