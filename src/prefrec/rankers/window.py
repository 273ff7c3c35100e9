"""Window co-occurrence: items that are near each other in many training histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, groupby, product
from operator import itemgetter
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import RankingExample
from prefrec.rankers.matrices import (
    blocks,
    history_matrix,
    history_terms,
    pad_codes,
    quick_factor,
    score_by_rows,
    user_item_matrix,
)

Settings = tuple[float, tuple[float, float], float]
"""Decay, exponents and half-life."""
GRID: tuple[Settings, ...] = tuple(
    product((20.0, 10.0, 40.0), ((0.5, 0.5), (0.5, 0.4), (0.25, 0.25)), (2.0, 1.0, 5.0, 20.0))
)
"""Settings to choose from."""
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
    decay: float = 20.0
    exponents: tuple[float, float] = (0.5, 0.5)

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
                `GRID`. The log must not contain their targets. Default: use the given values.
        """
        matrix, index = user_item_matrix(train_interactions)
        popularity = np.asarray(matrix.sum(axis=0))

        # In the grid, settings with the same decay are consecutive, so a cache of one is enough.
        @lru_cache(maxsize=1)
        def pairs(decay: float) -> sparse.csr_array:
            one_way = _near_pairs(train_interactions, index, reach, decay)
            return sparse.csr_array(one_way + one_way.T)

        grid = dict.fromkeys([(decay, exponents, half_life), *GRID])
        if validation and index:  # an empty log has no pairs to choose by
            by_decay = groupby(grid, key=itemgetter(0))
            reached = [_ndcgs(pairs(d), popularity, index, validation, [*own]) for d, own in by_decay]
            decay, exponents, half_life = max(zip(chain(*reached), grid, strict=True), key=itemgetter(0))[1]
        history, candidate = (sparse.diags_array(popularity**-power) for power in exponents)
        similarity = sparse.csr_array(history @ pairs(decay) @ candidate)
        return cls(similarity, index, half_life, decay=decay, exponents=exponents)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `fit` that give another log the chosen settings."""
        return {"decay": self.decay, "exponents": self.exponents, "half_life": self.half_life}

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        weights = history_matrix([e.history for e in examples], self.index, self.half_life)
        return score_by_rows(weights, lambda block: block @ self._factor, examples, self.index)

    @cached_property
    def _factor(self) -> Any:
        return quick_factor(self.similarity)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        def to_item(column: int) -> NDArray[np.float64]:
            return self.similarity[:, [column]].toarray()[:, 0]

        return history_terms(history, item, self.index, to_item, self.half_life)


def _ndcgs(
    pairs: sparse.csr_array,
    popularity: NDArray[np.float64],
    index: dict[str, int],
    rows: Sequence[RankingExample],
    settings: Sequence[Settings],
) -> list[float]:
    """Return mean NDCG@10 of examples for each of these settings, which share the decay; the target loses ties.

    The pairs of histories and candidates are looked up once for all settings.
    """
    sums = np.zeros(len(settings))
    widest = max(len(e.history) for e in rows) * max(len(e.candidates) for e in rows)
    for block in blocks(len(rows), widest):
        of_block = rows[block]
        items = pad_codes([e.history[::-1] for e in of_block], index)
        codes = pad_codes([e.candidates for e in of_block], index)
        known_items, known = (items >= 0) & (items < len(index)), codes < len(index)
        items, places = np.where(known_items, items, 0), np.where(known, codes, 0)
        shape = (len(of_block), items.shape[1], codes.shape[1])
        from_item, to_item = (
            np.broadcast_to(at, shape).reshape(len(of_block), -1) for at in (items[..., None], places[:, None])
        )
        near = pairs[from_item, to_item].toarray().reshape(shape)
        targets = [e.target_index for e in of_block]
        for number, (_, (a, b), half_life) in enumerate(settings):
            weights = np.where(known_items, popularity[items] ** -a, 0.0) * 2.0 ** (-np.arange(shape[1]) / half_life)
            scores = np.einsum("bh,bhc->bc", weights, near) * np.where(known, popularity[places] ** -b, 0.0)
            scores[codes < 0] = -np.inf
            ranks = (scores >= scores[np.arange(len(of_block)), targets][:, None]).sum(axis=1)
            sums[number] += np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0).sum()
    return [*(sums / len(rows))]


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
