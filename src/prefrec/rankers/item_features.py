"""Features of items without the user: counts, ages and recent interactions before the time of a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample, has_dates
from prefrec.rankers.matrices import blocks, pad_codes

DAY = 86_400
DAYS = (30, 90, 365)
"""Windows of recent popularity, in days."""
NEAR = 7
"""Days around a question's time whose interactions a rule without the user may count."""
YOUNG = 30
"""Days after its first interaction in which an item counts as young."""


@dataclass(frozen=True, eq=False)
class ItemHistory:
    """The interactions of each item of a catalogue, in the order of time.

    Attributes:
        places: in the catalogue of the items [I].
        items: of the interactions [E], as columns of `places`.
        times: of the interactions [E], ascending, in seconds; None if the log has no dates.
    """

    places: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64] | None

    @classmethod
    def of(cls, log: pl.DataFrame, catalogue: Catalogue) -> Self:
        """Return the history of a log `user_id, item_id, timestamp`; items outside the catalogue are left out."""
        places = pl.DataFrame({"item_id": catalogue.ids, "place": np.arange(len(catalogue))})
        known = log.select("item_id", "timestamp").join(places, on="item_id").sort("timestamp", maintain_order=True)
        times = known["timestamp"].to_numpy() if has_dates(log) else None
        return cls(places["place"].to_numpy(), known["place"].to_numpy(), times)

    def narrowed(self, places: NDArray[np.int64]) -> Self:
        """Return the history of some items of the whole catalogue, by their places [J]."""
        columns = np.full(len(self.places), -1, dtype=np.int64)
        columns[places] = np.arange(len(places))
        kept = columns[self.items] >= 0
        return replace(
            self,
            places=places,
            items=columns[self.items[kept]],
            times=None if self.times is None else self.times[kept],
        )

    def when(self, examples: Sequence[RankingExample]) -> NDArray[np.int64]:
        """Return the times of these questions [B]; just after the log's end if they have none."""
        now = 1 if self.times is None or not len(self.times) else int(self.times[-1]) + 1
        return np.array([now if e.time is None else e.time for e in examples], dtype=np.int64)

    def counts(self, times: NDArray[np.int64], days: int | None = None) -> NDArray[np.float32]:
        """Return each item's interactions before each time, in the last `days` of them (None: ever) [B, I].

        Without dates all interactions are before.
        """
        end = np.full(len(times), len(self.items))
        begin = np.zeros_like(end)
        if self.times is not None:
            end = np.searchsorted(self.times, times)
            begin = begin if days is None else np.searchsorted(self.times, times - days * DAY)
        return self._by_span(begin, end)

    def first(self) -> NDArray[np.float64]:
        """Return the time of each item's first interaction [I]; infinite if it has none."""
        first = np.full(len(self.places), np.inf)
        if self.times is not None:
            np.minimum.at(first, self.items, self.times.astype(np.float64))
        return first

    def age(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the days from each item's first interaction to each time [B, I]; 0 if it had none before."""
        # An item that nobody took yet is the limit of one that was just taken for the first time.
        return np.maximum((times[:, None] - self.first()[None]) / DAY, 0).astype(np.float32)

    def idle(self, times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the days from each item's last interaction before each time to it [B, I]; 0 if it had none."""
        out = np.zeros((len(times), len(self.places)), dtype=np.float32)
        if self.times is None:
            return out
        last, done = np.full(len(self.places), np.nan), 0
        for row in np.argsort(times, kind="stable"):
            end = int(np.searchsorted(self.times, times[row]))
            last[self.items[done:end]] = self.times[done:end]  # of equal items the last one stays
            done = end
            out[row] = np.nan_to_num((times[row] - last) / DAY)
        return out

    def near(self, times: NDArray[np.int64], days: int) -> NDArray[np.float32]:
        """Return each item's interactions within `days` before and after each time [B, I]."""
        if self.times is None:
            return np.zeros((len(times), len(self.places)), dtype=np.float32)
        begin, end = (np.searchsorted(self.times, times + sign * days * DAY) for sign in (-1, 1))
        return self._by_span(begin, end)

    def _by_span(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how often each item occurs among interactions begin ≤ e < end [B, I]; both grow together."""
        size, a, b = len(self.places), 0, 0
        out, counts = np.empty((len(end), size), dtype=np.float32), np.zeros(size, dtype=np.int64)
        for row in np.lexsort((begin, end)):  # each interaction enters the counts once and leaves them once
            counts += np.bincount(self.items[b : end[row]], minlength=size)
            counts -= np.bincount(self.items[a : begin[row]], minlength=size)
            a, b, out[row] = begin[row], end[row], counts
        return out


Feature = Callable[[ItemHistory, NDArray[np.int64]], NDArray[np.float32]]
"""Items and times [B] → values [B, I], or [1, I] for what does not depend on time."""


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """Named features of a catalogue's items at the time of a question."""

    history: ItemHistory
    index: dict[str, int]  # item_id → place in the catalogue
    features: Mapping[str, Feature]

    @property
    def names(self) -> list[str]:
        """Names of the features [F]."""
        return [*self.features]

    def __call__(self, examples: Sequence[RankingExample]) -> NDArray[np.float32]:
        """Return the features of the candidates [B, C, F]; NaN in empty places."""
        codes = pad_codes([e.candidates for e in examples], self.index)
        times, is_shared = self.history.when(examples), codes.strides[0] == 0
        out = np.empty((*codes.shape, len(self.features)), dtype=np.float32)
        for rows in blocks(len(codes), min(len(self.index), 64 * codes.shape[1])):
            own = np.maximum(codes[rows][:1] if is_shared else codes[rows], 0)
            listed = np.unique(own)
            some = self.history.narrowed(listed)  # lists of a large catalogue show few of its items
            columns = np.searchsorted(listed, own)
            for number, feature in enumerate(self.features.values()):
                values = np.broadcast_to(feature(some, times[rows]), (len(times[rows]), len(listed)))
                own_values = values[:, columns[0]] if is_shared else np.take_along_axis(values, columns, axis=1)
                out[rows, :, number] = own_values
        if not is_shared:
            out[codes < 0] = np.nan
        return out


def time_features(has_dates: bool) -> dict[str, Feature]:
    """Return what a blend knows of an item: popularity so far and recently, and age. All without the user.

    Age enters as −log1p(days): an item that nobody took yet has age 0. A flag of its own for such items is left out,
    since validation rows have too few of them to tell its weight.
    """
    features: dict[str, Feature] = {"popularity": lambda h, t: np.log1p(h.counts(t))}
    if not has_dates:
        return features
    for days in DAYS:
        features[f"popularity of {days} days"] = partial(_log_counts, days=days)
    features["−log age"] = lambda h, t: -np.log1p(h.age(t))
    features[f"younger than {YOUNG} days"] = lambda h, t: (h.age(t) < YOUNG).astype(np.float32)
    return features


def blind_features(catalogue: Catalogue, log: pl.DataFrame) -> dict[str, Feature]:
    """Return all that can be known of an item without the user, what a recommender should not use included.

    Beside `time_features` these are the square of popularity, never and once taken, days since the last interaction,
    interactions near the time of the question, the order of ids, the length of the title and the mean rating in `log`
    (`user_id, item_id, timestamp[, rating]`).
    """
    features = time_features(has_dates(log)) | {
        "popularity²": lambda h, t: np.log1p(h.counts(t)) ** 2,
        "never taken": lambda h, t: (h.counts(t) == 0).astype(np.float32),
        "taken once": lambda h, t: (h.counts(t) == 1).astype(np.float32),
    }
    if has_dates(log):
        features["−log days since the last"] = lambda h, t: -np.log1p(h.idle(t))
        features[f"within {NEAR} days"] = lambda h, t: np.log1p(h.near(t, NEAR))
    lengths = np.log1p([len(title) for title in catalogue.titles.values()])
    constants = {"order of ids": _id_order(catalogue), "title length": lengths, "mean rating": _means(catalogue, log)}
    return features | {name: partial(_constant, values=values) for name, values in constants.items()}


def _id_order(catalogue: Catalogue) -> NDArray[np.float64]:
    """Return the place of each item in the order of ids, from 0 to 1 [I]; ids are numbers if all of them are."""
    numeric = all(i.isascii() and i.isdigit() for i in catalogue.ids)
    keys = np.array([int(i) for i in catalogue.ids] if numeric else range(len(catalogue)), dtype=np.float64)
    return np.argsort(np.argsort(keys, kind="stable")) / max(1, len(keys) - 1)


def _means(catalogue: Catalogue, log: pl.DataFrame) -> NDArray[np.float64]:
    """Return each item's mean rating [I]; that of all interactions if it has none, 0 if nothing is rated."""
    if "rating" not in log.columns or not log["rating"].count():
        return np.zeros(len(catalogue))
    known = dict(log.group_by("item_id").agg(pl.mean("rating")).drop_nulls().iter_rows())
    overall = cast(float, log["rating"].mean())
    return np.array([known.get(item, overall) for item in catalogue.ids])


def _log_counts(history: ItemHistory, times: NDArray[np.int64], days: int) -> NDArray[np.float32]:
    return np.log1p(history.counts(times, days))


def _constant(history: ItemHistory, times: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values[history.places].astype(np.float32)[None]
