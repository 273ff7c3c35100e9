"""Readers of public data sets and of the user's own files, one module per source."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from prefrec.data.config import SOURCES, PrepareConfig
from prefrec.data.sources.base import GivenSplit, Source
from prefrec.data.sources.files import files
from prefrec.data.sources.goodreads import goodreads, goodreads_windows
from prefrec.data.sources.lastfm import lastfm_hetrec, lastfm_published
from prefrec.data.sources.movielens import movielens_100k, movielens_csv
from prefrec.data.sources.windows import windows

__all__ = ["GivenSplit", "Source", "load_source"]

_READERS: dict[str, Callable[[PrepareConfig], Source]] = {
    "movielens-100k": movielens_100k,
    "movielens-csv": movielens_csv,
    "lastfm-hetrec": lastfm_hetrec,
    "lastfm-published": lastfm_published,
    "goodreads": goodreads,
    "goodreads-windows": goodreads_windows,
    "windows": windows,
    "files": files,
}


def load_source(config: PrepareConfig) -> Source:
    """Read the source that `config` names. `prefrec.data.prepare` reads `published-json`, which has finished rows.

    Raises:
        DataError: its files cannot be used.
        ConfigError: the configuration asks for something they do not have.
    """
    if config.source in _READERS:
        return _READERS[config.source](config)
    (plugin,) = entry_points(group=SOURCES, name=config.source)
    source: Source = plugin.load()(config)
    return source
