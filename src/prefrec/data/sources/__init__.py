"""One file a source; each gives the same `Source`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefrec.data.sources.base import GivenSplit, Source
from prefrec.data.sources.movielens import movielens_100k, movielens_csv
from prefrec.errors import ConfigError

if TYPE_CHECKING:
    from prefrec.data.config import PrepareConfig

__all__ = ["GivenSplit", "Source", "load_source"]


def load_source(config: PrepareConfig) -> Source:
    """The source that `config` names.

    Raises:
        DataError: its files cannot be used.
    """
    if config.source == "movielens-100k":
        return movielens_100k(config.path)
    if config.path is None:
        raise ConfigError(f"path: source {config.source} needs the folder of the data")
    return movielens_csv(config.path)
