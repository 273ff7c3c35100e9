"""Features of items, independent of the user: counts, ages and recent interactions at the time of an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Candidates, Catalogue, Queries, Query, has_dates
from prefrec.data.times import log_end
from prefrec.data.types import WEIGHT
from prefrec.errors import DataError
from prefrec.rankers.matrices import blocks, candidate_codes

DAY = 86_400
DAYS = (30, 90, 365)
"""Windows of recent popularity, in days."""
NEAR = 7
"""Days before and after the time of an example whose interactions `blind_features` count."""
YOUNG = 30
"""Days after its first interaction that an item counts as young."""
POPULARITY, TIME = "item popularity", "time"
"""Names of the item features as parts of a blend: popularity so far, and all that need dates (`feature_part`)."""


@dataclass(frozen=True, eq=False)
class ItemHistory:
    """The interactions of a catalogue's items, in order of time.

    Attributes:
        codes: [I] catalogue indices of the items.
        items: [E] item of each interaction, as an index of `codes`.
        times: [E] times of the interactions in seconds, ascending.
        weights: [E] their weights, with which `counts` counts them. Default: all are 1.
    """

    codes: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, log: pl.DataFrame, catalogue: Catalogue) -> Self:
        """Return the history of a log `user_id, item_id, timestamp`, without items outside the catalogue."""
        codes = pl.DataFrame({"item_id": catalogue.ids, "code": np.arange(len(catalogue))})
        columns = [c for c in ("item_id", "timestamp", WEIGHT) if c in log.columns]
        known = log.select(columns).join(codes, on="item_id").sort("timestamp", maintain_order=True)
        weights = known[WEIGHT].to_numpy() if WEIGHT in columns else None
        return cls(codes["code"].to_numpy(), known["code"].to_numpy(), known["timestamp"].to_numpy(), weights)

    def narrowed(self, codes: NDArray[np.int64]) -> Self:
        """Return the history of some items, given their catalogue indices [J]; call it on all items."""
        columns = np.full(len(self.codes), -1, dtype=np.int64)
        columns[codes] = np.arange(len(codes))
        kept = columns[self.items] >= 0
        weights = None if self.weights is None else self.weights[kept]
        return type(self)(codes, columns[self.items[kept]], self.times[kept], weights)

    def when(self, queries: Sequence[Query]) -> NDArray[np.int64]:
        """Return the times [B] of queries; one without a time is `now`."""
        return np.array([self.now if q.time is None else q.time for q in queries], dtype=np.int64)

    @cached_property
    def now(self) -> int:
        """The time just after the end of the log (`log_end`)."""
        return log_end(self.times) + 1 if len(self.times) else 1

    def counts(self, times: NDArray[np.int64], days: int | None = None) -> NDArray[np.float32]:
        """Return the number of each item's interactions [B, I] before each time.

        Args:
            times: [B] in seconds.
            days: count only the last N days. Default: all.
        """
        end = np.searchsorted(self.times, times)
        begin = np.zeros_like(end) if days is None else np.searchsorted(self.times, times - days * DAY)
        return self._by_span(begin, end)

    def age(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the days [B, I] from each item's first interaction to each time; 0 if there is none before."""
        # Without interactions the age is 0, the limit of an item whose first interaction is just now.
        first = np.full(len(self.codes), np.inf)
        np.minimum.at(first, self.items, self.times.astype(np.float64))
        return np.maximum((times[:, None] - first) / DAY, 0).astype(np.float32)

    def idle(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the days [B, I] since each item's last interaction before each time; 0 if there is none before."""
        out = np.empty((len(times), len(self.codes)), dtype=np.float32)
        last, done = np.full(len(self.codes), np.nan), 0
        for row in np.argsort(times, kind="stable"):
            end = int(np.searchsorted(self.times, times[row]))
            last[self.items[done:end]] = self.times[done:end]  # for repeated items the last assignment wins
            done = end
            out[row] = np.nan_to_num((times[row] - last) / DAY)
        return out

    def near(self, times: NDArray[np.int64], days: int) -> NDArray[np.float32]:
        """Return the number of each item's interactions [B, I] within `days` before and after each time."""
        begin, end = (np.searchsorted(self.times, times + sign * days * DAY) for sign in (-1, 1))
        return self._by_span(begin, end)

    def _by_span(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how often each item occurs [B, I] among interactions begin ≤ e < end; both increase together."""
        size, a, b, weights = len(self.codes), 0, 0, self.weights
        out = np.empty((len(end), size), dtype=np.float32)
        counts = np.zeros(size, dtype=np.int64 if weights is None else np.float64)
        for row in np.lexsort((begin, end)):  # each interaction enters the counts once and leaves them once
            enter, leave = slice(b, end[row]), slice(a, begin[row])
            counts += np.bincount(self.items[enter], None if weights is None else weights[enter], size)
            counts -= np.bincount(self.items[leave], None if weights is None else weights[leave], size)
            # What is left of weights that have entered and left is a rounding error.
            a, b, out[row] = begin[row], end[row], counts if weights is None else counts.round(6)
        return out


Feature = Callable[[ItemHistory, NDArray[np.int64]], NDArray[np.float32]]
"""Items and times [B] → values [B, I], or [1, I] for a feature that does not depend on time."""


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """Named features of a catalogue's items at the time of an example."""

    history: ItemHistory
    index: dict[str, int]  # item_id → index in the catalogue
    features: Mapping[str, Feature]
    _kept: list[tuple[Candidates, int, NDArray[np.float32]]] = field(default_factory=list, repr=False)

    @property
    def names(self) -> list[str]:
        """Names of the features [F]."""
        return [*self.features]

    def __call__(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Return the features [B, C, F] of the candidates; NaN in empty columns.

        If B queries share their candidates (`Queries`) and time, as requests to a server do, they are [1, C, F].
        """
        times = self.history.when(queries)
        if isinstance(queries, Queries) and len(times) and (times == times[0]).all():
            return self._of_shared(queries, int(times[0]))
        return self._of_rows(queries, times)

    def _of_shared(self, queries: Queries, time: int) -> NDArray[np.float32]:
        """Return the features [1, C, F] of shared candidates, kept for the next block of queries about them."""
        for items, at, features in self._kept:
            if items is queries.candidates and at == time:
                return features
        features = self._of_rows(queries[:1], np.array([time]))
        self._kept[:] = [(queries.candidates, time, features)]
        return features

    def _of_rows(self, queries: Sequence[Query], times: NDArray[np.int64]) -> NDArray[np.float32]:
        codes = candidate_codes(queries, self.index)
        if codes.max(initial=-1) == len(self.index):
            item = next(item for q in queries for item in q.candidates if item not in self.index)
            raise DataError(f"candidate {item!r} is not in the catalogue of {len(self.index):,} items")
        is_shared = len(codes) == 1
        # Each feature is contiguous in memory, which makes sums over candidates quick.
        out = np.empty((len(self.features), len(queries), codes.shape[1]), dtype=np.float32).transpose(1, 2, 0)
        for rows in blocks(len(queries), min(len(self.index), 64 * codes.shape[1])):
            block = np.maximum(codes if is_shared else codes[rows], 0)
            listed = np.unique(block)
            narrowed = self.history.narrowed(listed)  # candidate sets contain few items of a large catalogue
            columns = np.searchsorted(listed, block)
            is_whole = is_shared and np.array_equal(columns[0], np.arange(len(listed)))
            for number, feature in enumerate(self.features.values()):
                values = np.broadcast_to(feature(narrowed, times[rows]), (len(times[rows]), len(listed)))
                if not is_whole:
                    values = values[:, columns[0]] if is_shared else np.take_along_axis(values, columns, axis=1)
                out[rows, :, number] = values
        if not is_shared:
            out[codes < 0] = np.nan
        return out


def time_features(has_dates: bool) -> dict[str, Feature]:
    """Return the item features of a blend: popularity so far, and with dates recent popularity and age.

    Age is −log1p(days), and an item without interactions has age 0. There is no flag for such items, because
    validation examples have too few of them to learn its weight.
    """
    features: dict[str, Feature] = {"popularity": lambda h, t: np.log1p(h.counts(t))}
    if not has_dates:
        return features
    for days in DAYS:
        features[f"popularity of {days} days"] = partial(_log_counts, days=days)
    features["−log age"] = lambda h, t: -np.log1p(h.age(t))
    features[f"younger than {YOUNG} days"] = lambda h, t: (h.age(t) < YOUNG).astype(np.float32)
    return features


def feature_part(name: str) -> str:
    """Return the part of a blend to which a feature of `time_features` belongs: `POPULARITY` or `TIME`."""
    return POPULARITY if name == "popularity" else TIME


def blind_features(catalogue: Catalogue, log: pl.DataFrame) -> dict[str, Feature]:
    """Return all item features that need no user, including those that a recommender should not use.

    In addition to `time_features` these are squared popularity, no or one interaction, days since the last
    interaction, interactions near the time of the example, order of ids, length of the title, and the mean rating in
    `log` (`user_id, item_id, timestamp[, rating]`).
    """
    features = time_features(has_dates(log)) | {
        "popularity²": lambda h, t: np.log1p(h.counts(t)) ** 2,
        "no interaction": lambda h, t: (h.counts(t) == 0).astype(np.float32),
        "one interaction": lambda h, t: (h.counts(t) == 1).astype(np.float32),
    }
    if has_dates(log):
        features["−log days since the last"] = lambda h, t: -np.log1p(h.idle(t))
        features[f"within {NEAR} days"] = lambda h, t: np.log1p(h.near(t, NEAR))
    lengths = np.log1p([len(title) for title in catalogue.titles.values()])
    constants = {"order of ids": _id_order(catalogue), "title length": lengths, "mean rating": _means(catalogue, log)}
    return features | {name: _constant(values) for name, values in constants.items()}


def _constant(values: NDArray[np.float64]) -> Feature:
    """Return the feature of values [I] that do not depend on the time."""

    def feature(history: ItemHistory, times: NDArray[np.int64]) -> NDArray[np.float32]:
        return values[history.codes].astype(np.float32)[None]

    return feature


def _id_order(catalogue: Catalogue) -> NDArray[np.float64]:
    """Return each item's position [I] in the order of ids, from 0 to 1; ids are compared as numbers if all are."""
    numeric = all(i.isascii() and i.isdigit() for i in catalogue.ids)
    keys = np.array([int(i) for i in catalogue.ids] if numeric else range(len(catalogue)), dtype=np.float64)
    return np.argsort(np.argsort(keys, kind="stable")) / max(1, len(keys) - 1)


def _means(catalogue: Catalogue, log: pl.DataFrame) -> NDArray[np.float64]:
    """Return each item's mean rating [I]; the overall mean for an unrated item, 0 if nothing is rated."""
    if "rating" not in log.columns or not log["rating"].count():
        return np.zeros(len(catalogue))
    known = dict(log.group_by("item_id").agg(pl.mean("rating")).drop_nulls().iter_rows())
    overall = cast(float, log["rating"].mean())
    return np.array([known.get(item, overall) for item in catalogue.ids])


def _log_counts(history: ItemHistory, times: NDArray[np.int64], days: int) -> NDArray[np.float32]:
    return np.log1p(history.counts(times, days))
