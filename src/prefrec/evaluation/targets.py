"""Groups of targets: whether their items are in the training log, in validation alone or new, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from prefrec.data import PreparedData, RankingExample
from prefrec.data.seen import items_before

IN_TRAINING, IN_VALIDATION, NEW = CLASSES = ("in training", "in validation only", "new")
"""Classes of items: those of the training log, those that only validation interactions have, and the others."""
COUNTS = {"0": 0, "1–2": 1, "3–10": 3, "11–50": 11, "more than 50": 51}
"""Name of a group → the smallest number of known interactions of its items."""
REPEAT, NEW_TO_USER = REPEATS = ("repeat", "new to the user")
"""Targets that the user had before, and the others."""
FEWEST = 20
"""Fewest examples of a group to compare rankers on; means over fewer say nothing."""


def item_classes(data: PreparedData, split: str) -> pl.DataFrame:
    """Return a row per item of the catalogue: `item_id`, `class`, `trained`, `known` and `count`.

    `class` is one of `CLASSES`. `trained` and `known` are numbers of interactions: in the training log, and before
    the examples of the split (`PreparedData.known_interactions`). `count` is the group of `known`, of `COUNTS`.
    """
    items = data.catalogue.frame.select("item_id")
    logs = {"trained": data.train_interactions, "known": data.known_interactions(split)}
    for name, log in logs.items():
        counts = log.group_by("item_id").agg(pl.len().cast(pl.Int64).alias(name))
        items = items.join(counts, on="item_id", how="left", maintain_order="left")
    items = items.with_columns(pl.col("trained", "known").fill_null(0))
    later = pl.when(pl.col("known") > 0).then(pl.lit(IN_VALIDATION)).otherwise(pl.lit(NEW))
    kind = pl.when(pl.col("trained") > 0).then(pl.lit(IN_TRAINING)).otherwise(later)
    count: pl.Expr = pl.lit("")
    for name, least in COUNTS.items():
        count = pl.when(pl.col("known") >= least).then(pl.lit(name)).otherwise(count)
    return items.select("item_id", kind.alias("class"), "trained", "known", count.alias("count"))


def target_classes(data: PreparedData, rows: Sequence[RankingExample], split: str) -> pl.DataFrame:
    """Return the columns of `item_classes` for the targets of examples [B] of a split, in their order."""
    targets = pl.DataFrame({"item_id": [e.target for e in rows]}, schema={"item_id": pl.String})
    return targets.join(item_classes(data, split), on="item_id", how="left", maintain_order="left")


def repeated_targets(data: PreparedData, rows: Sequence[RankingExample]) -> list[bool] | None:
    """Return whether the user of each example [B] had the target before; None if the data do not keep repeats."""
    if not data.keeps_repeats:
        return None
    return [e.target in before for e, before in zip(rows, items_before(data, rows), strict=True)]
