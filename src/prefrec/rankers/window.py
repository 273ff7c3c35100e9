"""Window co-occurrence: items that are near each other in many training histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import RankingExample
from prefrec.rankers.matrices import history_matrix, score_by_rows, user_item_matrix

GRID = tuple(product((20.0, 10.0, 40.0), ((0.5, 0.5), (0.5, 0.4), (0.25, 0.25)), (2.0, 1.0, 5.0, 20.0)))
"""Values of (decay, exponents, half-life) to choose from."""
_PAIRS_AT_A_TIME = 8_000_000
"""Pairs of neighbours held in memory before they are summed."""


@dataclass(eq=False)
class WindowCooccurrenceRanker:
    """Score of candidate c = Σ over history items i of 2^(−age_i / half_life) · M[i, c] / (pop_i^a · pop_c^b).

    M[i, j] = Σ exp(−(d − 1) / decay) over all pairs of a user's training items i and j with distance d ≤ `reach`, in
    either order. pop_i is the number of training users of i, and the newest item has age 0. Items without training
    interactions score 0.
    """

    similarity: sparse.csr_array
    index: dict[str, int]
    half_life: float = 2.0
    name: str = "window co-occurrence"

    @classmethod
    def fit(
        cls,
        train_interactions: pl.DataFrame,
        *,
        reach: int = 80,
        decay: float = 20.0,
        exponents: tuple[float, float] = (0.5, 0.5),
        half_life: float = 2.0,
        validation: Sequence[RankingExample] = (),
    ) -> Self:
        """Keep a sparse matrix of similarities [I, I].

        Args:
            train_interactions: frame with `user_id` and `item_id`; each user's interactions are in order.
            reach: largest distance of two items in a user's history.
            decay: distance over which a pair's weight falls by a factor of e.
            exponents: a and b, which reduce the weight of popular history items and of popular candidates.
            half_life: number of history items after which the weight is halved.
            validation: examples that choose decay, exponents and half-life by NDCG@10, among the given values and
                `GRID`. Default: use the given values.
        """
        matrix, index = user_item_matrix(train_interactions)
        popularity = np.asarray(matrix.sum(axis=0))

        # In the grid, equal decays (and within them equal exponents) are consecutive, so a cache of one is enough.
        @lru_cache(maxsize=1)
        def pairs(decay: float) -> sparse.csr_array:
            one_way = _near_pairs(train_interactions, index, reach, decay)
            return sparse.csr_array(one_way + one_way.T)

        @lru_cache(maxsize=1)
        def similarity(decay: float, exponents: tuple[float, float]) -> sparse.csr_array:
            history, candidate = (sparse.diags_array(popularity**-power) for power in exponents)
            return sparse.csr_array(history @ pairs(decay) @ candidate)

        grid = dict.fromkeys([(decay, exponents, half_life), *(GRID if validation else ())])
        rankers = (cls(similarity(d, e), index, life) for d, e, life in grid)
        if not validation:
            return next(rankers)
        targets = [e.target_index for e in validation]
        return max(rankers, key=lambda ranker: _mean_ndcg(ranker.score(validation), targets))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        weights = history_matrix([e.history for e in examples], self.index, self.half_life)
        return score_by_rows(weights, [self.similarity], examples, self.index)


def _mean_ndcg(scores: NDArray[np.float64], targets: Sequence[int]) -> float:
    """Return mean NDCG@10 of scores [B, C]; the target loses ties."""
    ranks = (scores >= scores[np.arange(len(scores)), targets][:, None]).sum(axis=1)
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0).mean())


def _near_pairs(log: pl.DataFrame, index: dict[str, int], reach: int, decay: float) -> sparse.csr_array:
    """Return [I, I]: Σ exp(−(d − 1) / decay) over the pairs in which column follows row at distance d ≤ reach."""
    log = log.select("item_id", user=pl.col("user_id").rank("dense")).sort("user", maintain_order=True)
    items = np.array([index[i] for i in log["item_id"].to_list()], dtype=np.int32)
    users = log["user"].to_numpy()
    total = sparse.csr_array((len(index), len(index)))
    held: list[tuple[NDArray[Any], ...]] = []
    last = min(reach, len(items) - 1)
    for d in range(1, last + 1):
        same = users[:-d] == users[d:]
        before, after = items[:-d][same], items[d:][same]
        held.append((np.full(len(before), np.exp(-(d - 1) / decay)), before, after))
        # All pairs of all distances together are `reach` times the log, so sum them in parts.
        if d == last or sum(len(w) for w, _, _ in held) >= _PAIRS_AT_A_TIME:
            weights, rows, columns = (np.concatenate(part) for part in zip(*held, strict=True))
            total, held = total + sparse.csr_array((weights, (rows, columns)), shape=total.shape), []
    return total
