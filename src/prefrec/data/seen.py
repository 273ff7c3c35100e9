"""What the user of a held-out row has taken before its target: training interactions, and held-out ones up to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from prefrec.console import warn
from prefrec.data.types import PreparedData, RankingExample, Window


def held_out_interactions(log: pl.DataFrame, windows: Sequence[Window], learn: pl.DataFrame) -> pl.DataFrame:
    """Interactions of the users of `windows` up to each user's last target there, without those of `learn`.

    They have the columns and the order of `log`.

    Args:
        log: `user_id, item_id, …`, each user's in their order, no item twice.
        windows: validation and test rows.
        learn: training interactions.
    """
    pair = ["user_id", "item_id"]
    targets = pl.DataFrame([(w.user_id, w.target) for w in windows], dict.fromkeys(pair, pl.String), orient="row")
    log = log.with_row_index("place")
    last = log.join(targets, on=pair, how="semi").group_by("user_id").agg(pl.col("place").max().alias("last"))
    held_out = log.join(last, on="user_id").filter(pl.col("place") <= pl.col("last"))
    return held_out.join(learn, on=pair, how="anti").sort("place").drop("place", "last")


def seen_items(data: PreparedData, rows: Sequence[RankingExample]) -> list[set[str]]:
    """Items that each row's user took before the row's target [B]: no candidates where all items are.

    They are the row's history, the user's training interactions, which lie before all held-out ones, and those of
    `held_out_interactions` before the target; nothing that follows it. A target that was taken before is among them.
    Data that an earlier prefrec prepared lack the held-out ones: it warns where the split may need them.

    Args:
        data: prepared rows.
        rows: of its validation or test rows.
    """
    if data.held_out_interactions is None and data.protocol.get("split", "leave-last-out") != "leave-last-out":
        warn(
            "the data were prepared by an earlier prefrec and lack held_out.parquet: what users took before the "
            "history that a row shows is taken for unseen. Prepare them again; models trained on the same rows stay"
        )
    users = {e.user_id for e in rows}
    learnt, held_out = _by_user(data.train_interactions, users), _by_user(data.held_out_interactions, users)
    found = []
    for e in rows:
        own = held_out.get(e.user_id, [])
        before = own[: own.index(e.target)] if e.target in own else []
        found.append({*e.history, *learnt.get(e.user_id, ()), *before})
    return found


def _by_user(log: pl.DataFrame | None, users: Collection[str]) -> dict[str, list[str]]:
    """User → items in the order of the log, of these users."""
    if log is None:
        return {}
    own = log.filter(pl.col("user_id").is_in(list(users)))
    return dict(own.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
