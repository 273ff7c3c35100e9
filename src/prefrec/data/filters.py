"""Filters on interactions: ratings, repeats, cores. Each function returns the interactions it keeps."""

from __future__ import annotations

import polars as pl

from prefrec.data.readers import time_columns
from prefrec.errors import ConfigError


def at_least(log: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Return the interactions rated `min_rating` or more; unrated ones are dropped.

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
    """Return each user's first interaction with each item.

    Repeats would put targets into their own histories. Among interactions at the same time the lowest rating stays,
    whatever the order of the file.
    """
    times = time_columns(log)
    values = [c for c in log.columns if c not in (*times, "user_id", "item_id") and not log.schema[c].is_nested()]
    return log.sort([*times, *values], nulls_last=True, maintain_order=True).unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )


def core(log: pl.DataFrame, user_core: int, item_core: int, iterative: bool = True) -> pl.DataFrame:
    """Return the interactions of items with ≥ `item_core` users and of users with ≥ `user_core` items.

    If `iterative`, repeat until nothing changes (the k-core). Otherwise make one pass, items first, as in the
    published LastFM data; some items may then be below the bound again.
    """
    while True:
        before = len(log)
        log = log.filter(pl.len().over("item_id") >= item_core).filter(pl.len().over("user_id") >= user_core)
        if not iterative or len(log) == before:
            return log
