"""Features of a user's own items: how often and how recently they were bought, and whether they are due again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Queries, Query, has_dates
from prefrec.data.times import log_end
from prefrec.rankers.item_features import DAY

PAST = "own past"
"""Name of these features as a part of a blend, together with the weights that all others have for own items."""
NAMES = ("own", "log times bought", "−log time since", "not yet due", "overdue", "−log usual gap")
"""Names of the features [F]."""
SHRINK_ITEM = 5.0
"""Gaps of the whole log that count as much as the gaps of one item."""
SHRINK_USER = 2.0
"""Gaps of an item that count as much as the gaps of one user."""


class Cells(NamedTuple):
    """Candidates that their user has: rows [N] and columns [N] among the candidates, and their features [N, F]."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OwnPast:
    """Features of the items in a user's history; all other items have 0.

    Ages of interactions and the gaps between them are in days. If the log has no dates they are in steps, which are
    interactions of the user. All features are of log1p of these. The usual gap of an item is the median of the user's
    gaps, shrunk to the median of all users for this item, and that to the median of the log. With r = log1p(age of
    the last interaction) − log1p(usual gap), *not yet due* is min(r, 0) and *overdue* is max(r, 0).

    Attributes:
        usual: item → log1p of its usual gap over all users.
        default: log1p of the median gap of the log, for items that nobody has bought twice.
        step: mean days between a user's interactions, which is the distance of interactions without times; 1 without
            dates.
        now: time just after the end of the log, for examples without a time; None without dates.
    """

    usual: Mapping[str, float]
    default: float
    step: float = 1.0
    now: int | None = None

    @classmethod
    def of(cls, log: pl.DataFrame) -> Self:
        """Learn the usual gaps from a log `user_id, item_id, timestamp`, sorted by user and time."""
        is_dated, step, now = has_dates(log), 1.0, None
        place = pl.col("timestamp") / DAY if is_dated else pl.int_range(pl.len()).over("user_id")
        places = log.select("user_id", "item_id", place=place.cast(pl.Float64))
        if is_dated:
            spans = places.group_by("user_id").agg(pl.col("place").max() - pl.col("place").min(), n=pl.len() - 1)
            step, now = _ratio(spans["place"], spans["n"]), log_end(log["timestamp"].sort().to_numpy()) + 1
        gap = (pl.col("place") - pl.col("place").shift()).over("user_id", "item_id")
        gaps = places.select("item_id", gap=gap.log1p()).drop_nulls()
        if gaps.is_empty():
            return cls({}, float(np.log1p(step)), step, now)
        default = float(np.median(gaps["gap"].to_numpy()))
        by_item = gaps.group_by("item_id").agg(median=pl.col("gap").median(), n=pl.len())
        shrunk = (pl.col("n") * pl.col("median") + SHRINK_ITEM * default) / (pl.col("n") + SHRINK_ITEM)
        return cls(dict(by_item.select("item_id", shrunk).iter_rows()), default, step, now)

    def of_query(self, query: Query) -> dict[str, tuple[float, ...]]:
        """Return item → features [F] of the items of a query's history."""
        ages_of: dict[str, list[float]] = {}
        for item, age in zip(query.history, self._ages(query).tolist(), strict=True):
            ages_of.setdefault(item, []).append(age)
        found: dict[str, tuple[float, ...]] = {}
        for item, ages in ages_of.items():
            count, prior = len(ages) - 1, self.usual.get(item, self.default)
            own = float(np.median(np.log1p(-np.diff(ages)))) if count else 0.0
            usual = (count * own + SHRINK_USER * prior) / (count + SHRINK_USER)
            last = float(np.log1p(ages[-1]))
            due = last - usual
            found[item] = (1.0, float(np.log(len(ages))), -last, min(due, 0.0), max(due, 0.0), -usual)
        return found

    def _ages(self, query: Query) -> NDArray[np.float64]:
        """Return the age [L] of each interaction of the history, in days or steps; it never increases.

        Interactions without a time are taken to be `step` apart, but not before those with one.
        """
        ages = np.arange(len(query.history), 0, -1, dtype=np.float64) * self.step
        known = len(query.history_times) if self.now is not None else 0
        if known:
            now = self.now if query.time is None else query.time
            # What is served may have a later time than the log that is learnt.
            ages[:known] = np.maximum((now - np.array(query.history_times)) / DAY, 0)
            ages[known:] = np.minimum(ages[known:], ages[known - 1])
        return ages

    def of_item(self, queries: Sequence[Query], item: str) -> NDArray[np.float64]:
        """Return the features [B, F] of one item."""
        own = (self.of_query(query).get(item) for query in queries)
        return np.array([[0.0] * len(NAMES) if values is None else values for values in own])

    def cells(self, queries: Sequence[Query]) -> Cells:
        """Return the candidates that are in their query's history, in order of rows."""
        rows: list[int] = []
        columns: list[int] = []
        values: list[tuple[float, ...]] = []
        places = queries.candidates.places if isinstance(queries, Queries) else None
        for row, query in enumerate(queries):
            own = self.of_query(query)
            for item, column in _listed(query.candidates, own) if places is None else _placed(places, own):
                rows.append(row)
                columns.append(column)
                values.append(own[item])
        table = np.array(values, dtype=np.float32).reshape(-1, len(NAMES))
        return Cells(np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), table)


def _ratio(days: pl.Series, steps: pl.Series) -> float:
    """Return the mean days of a step; 1 if there is no step, or no time passes."""
    total = float(days.sum())
    return total / float(steps.sum()) if total > 0 else 1.0


def _placed(places: Mapping[str, int], own: Iterable[str]) -> Iterable[tuple[str, int]]:
    """Return the items of `own` that have a place, with it."""
    return [(item, places[item]) for item in own if item in places]


def _listed(candidates: Sequence[str], own: Collection[str]) -> Iterable[tuple[str, int]]:
    """Return the candidates that are in `own`, with their places."""
    return [(item, place) for place, item in enumerate(candidates) if item in own] if own else ()
