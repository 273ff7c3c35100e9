"""Returned purchases: lines of a log that take an earlier line back."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from prefrec.data.times import time_columns
from prefrec.data.types import LOG_SCHEMA

_NOTHING = 1e-9
"""Largest quantity that counts as nothing: fractions such as 0.3 − 0.1 − 0.2 leave a rest."""


def settle(log: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Take returned purchases out of a log, with the returns themselves and the lines that are no purchases.

    A return is a line with a negative `quantity`, or whose `kind` is `return`. It takes back the user's latest
    earlier purchases of the item, up to its quantity. A purchase of which a part is left stays. A line without a
    quantity has the quantity 1. Among lines of one time, purchases come first. Lines of the kind `other`, such as
    views, stay whatever their quantity is.

    Args:
        log: with the columns `quantity` (Float64), `kind` (`parse_kinds`), or both.

    Returns:
        The log without these columns; `user_id, item_id, timestamp` of the purchases and lines that were taken out,
        whose users have touched these items; and notes.
    """
    kind = pl.col("kind") if "kind" in log.columns else pl.lit("buy")
    quantity = pl.col("quantity").fill_null(1.0) if "quantity" in log.columns else pl.lit(1.0)
    is_other = kind == "other"
    is_return = (kind != "drop") & ~is_other & ((kind == "return") | (quantity < 0))
    is_purchase = (kind == "buy") & (quantity > 0)
    lines = log.select(
        "user_id",
        "item_id",
        *time_columns(log),
        is_return=is_return,
        is_purchase=is_purchase,
        is_other=is_other,
        units=quantity.abs(),
    ).with_row_index("row")
    returns = lines.filter("is_return")
    taken, unmatched = _taken_back(lines, returns)
    is_gone = pl.col("row").is_in(taken)
    is_neither = ~pl.col("is_purchase") & ~pl.col("is_return") & ~pl.col("is_other")
    besides = lines.filter(is_gone | is_neither).select(*LOG_SCHEMA)
    kept = lines.select(((pl.col("is_purchase") & ~is_gone) | pl.col("is_other")).alias("kept"))["kept"]
    notes = []
    if len(returns):
        notes.append(
            f"{len(returns):,} of {len(log):,} lines are returns and were dropped; purchases that they take back, "
            f"also dropped: {len(taken):,}; returns without an earlier purchase: {unmatched:,}"
        )
    if neither := len(lines.filter(is_neither)):
        notes.append(
            f"{neither:,} of {len(log):,} lines are no purchases by their kind or quantity, and were dropped"
        )
    if "quantity" in log.columns and (empty := log["quantity"].null_count()):
        notes.append(f"{empty:,} of {len(log):,} lines have no quantity, and count as 1")
    return log.filter(kept).drop("quantity", "kind", strict=False), besides, notes


def _taken_back(lines: pl.DataFrame, returns: pl.DataFrame) -> tuple[list[int], int]:
    """Return the numbers of the purchases that returns take back whole, and the number of returns without any."""
    pairs = ["user_id", "item_id"]
    concerned = lines.filter(pl.col("is_return") | pl.col("is_purchase")).join(returns, on=pairs, how="semi")
    taken, unmatched = list[int](), 0
    for pair in _sequences(concerned.sort(*time_columns(lines), "is_return", "row"), pairs):
        open_purchases = list[list[float]]()  # number and quantity that is left, the latest one last
        for row, is_return, units in pair:
            if not is_return:
                open_purchases.append([row, units])
                continue
            unmatched += not open_purchases
            while open_purchases and units > _NOTHING:
                latest = open_purchases[-1]
                back = min(units, latest[1])
                units, latest[1] = units - back, latest[1] - back
                if latest[1] <= _NOTHING:
                    taken.append(int(open_purchases.pop()[0]))
    return taken, unmatched


def _sequences(lines: pl.DataFrame, pairs: list[str]) -> Iterator[Iterator[tuple[int, bool, float]]]:
    """Yield the number, kind and quantity of the lines of each user and item, in order."""
    columns = ("row", "is_return", "units")
    grouped = lines.group_by(pairs, maintain_order=True).agg(*columns)
    for rows, kinds, units in grouped.select(*columns).iter_rows():
        yield zip(rows, kinds, units, strict=True)
