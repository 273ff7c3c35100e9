"""Transition graph with text: items that follow the latest ones, nearer rings first, by words within a ring.

A training-free baseline after arXiv 2605.07125, where it matches or beats generative recommenders on most data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Catalogue, Query
from prefrec.data.types import WEIGHT
from prefrec.rankers.matrices import DENSE_CELLS, history_matrix, score_by_rows
from prefrec.rankers.words import tfidf

LATEST = 2
"""Items of the history that the walk starts from."""
_RING = 100.0  # more than scores within a ring can differ


@dataclass(eq=False)
class TransitionGraphRanker:
    """Score of a candidate = ring, then cos(titles of the latest items, its title) + ½·log1p(transitions to it).

    The first ring has the items that directly follow one of the `LATEST` history items in some training sequence, the
    second ring the items that follow those. All others come last.
    """

    following: sparse.csr_array  # [I, I] how often column directly follows row
    vectors: sparse.csr_array  # [I, W] of titles
    index: dict[str, int]
    name: str = "transition graph"

    @classmethod
    def fit(cls, log: pl.DataFrame, catalogue: Catalogue) -> Self:
        """Count transitions in each user's sequence; `log` is sorted by user and time.

        If interactions have weights, a transition counts with the product of both.
        """
        index = catalogue.index
        next_item, both = pl.col("item_id").shift(-1).over("user_id"), pl.lit(1.0)
        if WEIGHT in log.columns:
            both = pl.col(WEIGHT) * pl.col(WEIGHT).shift(-1).over("user_id")
        pairs = log.select("item_id", next_item.alias("next"), both.alias(WEIGHT)).drop_nulls()
        pairs = pairs.filter(pl.all_horizontal(pl.col("item_id", "next").is_in(catalogue.ids)))
        before, after = ([index[i] for i in pairs[column].to_list()] for column in ("item_id", "next"))
        counts = pairs[WEIGHT].to_numpy()
        following = sparse.csr_array((counts, (before, after)), shape=(len(index), len(index)))
        following.sum_duplicates()
        return cls(following, tfidf(list(catalogue.titles.values())), index)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        latest = history_matrix([q.history[-LATEST:] for q in queries], self.index)

        def of_items(latest: sparse.csr_array) -> NDArray[np.float64]:
            first = sparse.csr_array(latest @ self.following)
            ring = self._second(latest, first).astype(np.float64)
            at = np.repeat(np.arange(len(ring)), np.diff(first.indptr)), first.indices
            ring[at] = 2
            scores: NDArray[np.float64] = (latest @ self.vectors @ self._titles).toarray()
            scores[at] += 0.5 * np.log1p(first.data)
            scores += _RING * ring
            return scores

        return score_by_rows(latest, of_items, queries, self.index)

    def _second(self, latest: sparse.csr_array, first: sparse.csr_array) -> NDArray[np.bool_]:
        """Return whether each item [b, I] follows one of the first ring, given weights [b, I] of both."""
        if self._two_steps is not None:
            return np.asarray(latest @ self._two_steps > 0)
        return np.asarray((first @ self.following).toarray() > 0)

    @cached_property
    def _titles(self) -> sparse.csr_array:
        return self.vectors.T.tocsr()

    @cached_property
    def _two_steps(self) -> NDArray[np.float64] | None:
        """In how many ways column follows row in two steps [I, I]; None if that would take too much memory."""
        size = len(self.index)
        return (self.following @ self.following).toarray() if size * size <= DENSE_CELLS else None
