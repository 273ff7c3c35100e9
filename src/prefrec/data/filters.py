"""Which interactions count: ratings, repeats, cores. Each function returns the log it keeps."""

from __future__ import annotations

import polars as pl

from prefrec.data.readers import time_columns
from prefrec.errors import ConfigError


def at_least(log: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Interactions with a rating of `min_rating` or more; without one they are left out.

    Raises:
        ConfigError: the log has no ratings.
    """
    if "rating" not in log.columns:
        raise ConfigError(
            "min_rating is set, but the log has no ratings: name the column with --columns.rating "
            "(`columns.rating` in a recipe)"
        )
    return log.filter(pl.col("rating") >= min_rating)


def first_only(log: pl.DataFrame) -> pl.DataFrame:
    """Each user's first interaction with each item: repeats would put targets into their own histories.

    Of two at one time the values decide (the lower rating stays), not the order of the file.
    """
    times = time_columns(log)
    values = [c for c in log.columns if c not in (*times, "user_id", "item_id") and not log.schema[c].is_nested()]
    return log.sort([*times, *values], nulls_last=True, maintain_order=True).unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )


def core(log: pl.DataFrame, user_core: int, item_core: int, iterative: bool = True) -> pl.DataFrame:
    """Interactions of items with ≥ `item_core` users, and of users with ≥ `user_core` items.

    Args:
        iterative: repeat until nothing changes (the k-core); else one pass, items first, as in the published
            LastFM data, after which some items may lie below the bound again.
    """
    while True:
        before = len(log)
        log = log.filter(pl.len().over("item_id") >= item_core)
        log = log.filter(pl.len().over("user_id") >= user_core)
        if not iterative or len(log) == before:
            return log
