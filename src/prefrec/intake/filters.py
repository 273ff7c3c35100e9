"""Filter a log: what is used, what is only served, and what users touched besides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import polars as pl

from prefrec.data import splits
from prefrec.data.types import LOG_SCHEMA
from prefrec.errors import ConfigError, DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.sources.base import Source


@dataclass(eq=False)
class Filtered:
    """A log that filters have divided.

    Attributes:
        log: the interactions to learn from and to measure on.
        served: interactions that pass the filters on interactions, of users with fewer than `user_core` items. They
            are histories for clients, and nothing else.
        dropped: `user_id, item_id, timestamp` of all other interactions. Their users have touched these items.
        counts: counts of each filter, for the protocol.
    """

    log: pl.DataFrame
    served: pl.DataFrame
    dropped: list[pl.DataFrame] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def drop(self, frame: pl.DataFrame, kept: pl.Expr) -> pl.DataFrame:
        """Return the interactions of a frame that meet a condition; the others are added to `dropped`."""
        kept = kept.fill_null(False)
        self.dropped.append(frame.filter(~kept).select(*LOG_SCHEMA))
        return frame.filter(kept)


def touched_besides(
    dropped: Sequence[pl.DataFrame], items: Sequence[str], users: Collection[str]
) -> pl.DataFrame | None:
    """Return which items users touched in dropped interactions, or None if there are none.

    The frame has the columns `user_id, item_id, timestamp` and a row per pair, sorted. The time is the first one;
    it is empty if the source does not know it.

    Args:
        dropped: the interactions that filters dropped.
        items: the catalogue. Other items are not offered to anybody, and are left out.
        users: users of the log that is left. Those of whom nothing else is known keep items that are not offered, so
            that they do not count as unknown.
    """
    if not dropped:
        return None
    found, is_offered = pl.concat(dropped), pl.col("item_id").is_in(items)
    is_known = pl.col("user_id").is_in(users) | is_offered.any().over("user_id")
    found = found.filter(is_offered | ~is_known)
    first = found.group_by("user_id", "item_id").agg(pl.col("timestamp").min()).sort("user_id", "item_id")
    return first if len(first) else None


def filter_log(source: Source, config: PrepareConfig) -> Filtered:
    """Divide a source's interactions by all filters but `latest_per_user`; raise DataError if none is left to use."""
    log = source.interactions
    found = Filtered(log, log.clear(), counts={"interactions_read": len(log)})
    counts = found.counts
    if source.touched is not None:
        undated = source.touched.select("user_id", "item_id", timestamp=pl.lit(None, pl.Int64))
        found.dropped.append(undated.join(log, on=["user_id", "item_id"], how="anti"))
    if source.besides is not None:
        found.dropped.append(source.besides.join(log, on=["user_id", "item_id"], how="anti"))
    if config.min_rating is not None:
        if "rating" not in log.columns:
            raise ConfigError(
                "min_rating is set, but the log has no ratings: name the column with --columns.rating "
                "(`columns.rating` in a recipe)"
            )
        log = found.drop(log, pl.col("rating") >= config.min_rating)  # unrated ones are dropped
        counts["interactions_with_min_rating"] = len(log)
    first = splits.first_only(log)
    kept = splits.core(first, config.user_core, config.item_core)
    if config.repeats == "keep":
        first = splits.first_only(log, keep_repeats=True)
        distinct, kept = len(kept), first.join(kept, on=["user_id", "item_id"], how="semi", maintain_order="left")
        counts["repeats_kept"] = len(kept) - distinct
    counts |= {"repeats_dropped": len(log) - len(first), "dropped_by_core": len(first) - len(kept)}
    if len(kept) < len(first):
        for ids in ("user_id", "item_id"):
            counts[f"{ids[:4]}s_dropped_by_core"] = first[ids].n_unique() - kept[ids].n_unique()
        offered = found.drop(first, pl.col("item_id").is_in(kept["item_id"].unique().implode()))
        found.served = offered.filter(~pl.col("user_id").is_in(kept["user_id"].unique().implode()))
    if kept.is_empty():
        raise DataError(
            f"the filters drop all {counts['interactions_read']} interactions: lower min_rating "
            f"({config.min_rating}), user_core ({config.user_core}) or item_core ({config.item_core})"
        )
    found.log = kept
    if config.fold:
        is_before = pl.col("timestamp") <= splits.before_tests(kept, config.fold)["timestamp"].max()
        found.log, found.served = found.drop(kept, is_before), found.drop(found.served, is_before)
    return found
