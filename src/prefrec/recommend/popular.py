"""Recent popularity: the answer to an empty history, and the order of items with equal scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Candidates, PreparedData
from prefrec.rankers.baselines import PopularityRanker
from prefrec.rankers.item_features import ItemHistory

RECENT = 90
"""Days before the end of the log whose interactions count; all of them in a log without dates."""
COUNT, PLACE = "recent", "place"
"""Columns of a table of items: number of recent interactions, and place in the order of popularity, from 0."""


@dataclass(frozen=True, eq=False)
class Popular:
    """A catalogue's items by recent popularity, then by popularity of all time, then in the catalogue's order.

    Attributes:
        name: of this order, as in tables.
        ids: items, the most popular one first.
        counts: [I] number of recent interactions of each of these items.
    """

    name: str
    ids: list[str]
    counts: NDArray[np.float32]

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Item → index in `ids`."""
        return {item: n for n, item in enumerate(self.ids)}

    @cached_property
    def items(self) -> Candidates:
        """`ids` as candidates that questions share."""
        return Candidates(self.ids)

    @classmethod
    def of(cls, data: PreparedData) -> Self | None:
        """Return the popularity in the log that is known before test examples; None if the log is empty."""
        history = ItemHistory.of(data.known_interactions("test"), data.catalogue)
        ids = data.catalogue.ids
        if not len(history.times):
            return None
        now = np.array([history.now])
        recent = history.counts(now, RECENT if data.has_dates else None)[0]
        all_time = history.counts(now)[0]
        order = np.lexsort((-all_time, -recent))
        by_popularity = [ids[i] for i in order]
        name = f"popularity of {RECENT} days" if data.has_dates else PopularityRanker.name
        return cls(name, by_popularity, recent[order])

    @classmethod
    def read(cls, items: pl.DataFrame, name: str) -> Self:
        """Return the popularity in a table that `added_to` returned; `name` is that of the order."""
        ordered = items.sort(PLACE)
        return cls(name, ordered["item_id"].to_list(), ordered[COUNT].to_numpy().astype(np.float32))

    def added_to(self, items: pl.DataFrame) -> pl.DataFrame:
        """Return a table of all items with the columns `COUNT` and `PLACE`."""
        ids = items["item_id"].to_list()
        places = [self.position[item] for item in ids]
        counts = np.rint(self.counts_of(ids)).astype(np.int64)  # interactions may have weights
        return items.with_columns(pl.Series(COUNT, counts), pl.Series(PLACE, places))

    def counts_of(self, items: Iterable[str]) -> NDArray[np.float32]:
        """Return the number of recent interactions of each of these items."""
        return self.counts[[self.position[item] for item in items]].astype(np.float32)
