"""Transition graph with text: items that follow the latest ones, nearer rings first, by words within a ring.

A training-free baseline after arXiv 2605.07125, where it matches or beats generative recommenders on most data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.matrices import blocks, history_matrix, pad_codes
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
        """Count transitions in each user's sequence; `log` is sorted by user and time."""
        index = {item: i for i, item in enumerate(catalogue.ids)}
        next_item = pl.col("item_id").shift(-1).over("user_id")
        pairs = log.select("item_id", next_item.alias("next")).drop_nulls()
        pairs = pairs.filter(pl.all_horizontal(pl.all().is_in(catalogue.ids)))
        before, after = ([index[i] for i in pairs[column].to_list()] for column in pairs.columns)
        following = sparse.csr_array((np.ones(len(pairs)), (before, after)), shape=(len(index), len(index)))
        following.sum_duplicates()
        return cls(following, tfidf(list(catalogue.titles.values())), index)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        codes = pad_codes([e.candidates for e in examples], self.index)
        latest = history_matrix([e.history[-LATEST:] for e in examples], self.index)
        scores = np.full(codes.shape, -np.inf)
        for rows in blocks(len(examples), len(self.index)):
            first = latest[rows] @ self.following
            second = (first @ self.following).toarray() > 0
            counts = first.toarray()
            text = (latest[rows] @ self.vectors @ self.vectors.T.tocsr()).toarray()
            whole = text + 0.5 * np.log1p(counts) + _RING * np.where(counts > 0, 2, second)
            known = np.hstack([whole, np.zeros((len(whole), 1))])
            scores[rows] = np.take_along_axis(known, np.maximum(codes[rows], 0), axis=1)
        return np.where(codes < 0, -np.inf, scores)
