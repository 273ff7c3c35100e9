"""Window co-occurrence: items that are near each other in many training histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, groupby, product
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Query, RankingExample
from prefrec.data.types import WEIGHT
from prefrec.rankers.matrices import (
    blocks,
    history_matrix,
    history_terms,
    quick_factor,
    score_by_rows,
    user_item_matrix,
)

ROWS = 2000
"""Most validation examples that choose the settings."""


class Settings(NamedTuple):
    """Settings of the rule, which validation examples choose.

    Attributes:
        decay: distance over which a pair's weight falls by a factor of e.
        exponents: a and b, which reduce the weight of popular history items and of popular candidates.
        half_life: number of history items after which the weight is halved.
        backward: weight of a candidate that comes before the history item, relative to one that comes after it.
    """

    decay: float = 20.0
    exponents: tuple[float, float] = (0.5, 0.5)
    half_life: float = 2.0
    backward: float = 1.0


DEFAULT = Settings()
GRID: tuple[Settings, ...] = tuple(
    Settings(decay, (a, b), half_life, backward)
    for decay, half_life, a, b, backward in product(
        (20.0, 6.0), (2.0, 1.0, 5.0, 20.0), (0.5, 0.25), (0.5, 0.25, 0.1), (1.0, 0.5, 0.2)
    )
)
"""Settings to choose from. Those with the same decay are consecutive, and among them those with the same history."""
_PAIRS_AT_A_TIME = 8_000_000
"""Pairs of neighbours held in memory before they are summed."""


@dataclass(eq=False)
class WindowCooccurrenceRanker:
    """Score of candidate c = Σ over history items i of 2^(−age_i / half_life) · M[i, c] / (pop_i^a · pop_c^b).

    M[i, c] = Σ exp(−(d − 1) / decay) over all pairs of a user's training items in which c follows i at a distance
    d ≤ `reach`, plus `backward` times the same for pairs in which c comes before i. pop_i is the number of training
    users of i, and the newest item has age 0. Items without training interactions score 0.
    """

    similarity: sparse.csr_array
    index: dict[str, int]
    chosen: Settings = DEFAULT
    name: str = "window co-occurrence"

    @classmethod
    def fit(
        cls,
        train_interactions: pl.DataFrame,
        *,
        reach: int = 80,
        decay: float = DEFAULT.decay,
        exponents: tuple[float, float] = DEFAULT.exponents,
        half_life: float = DEFAULT.half_life,
        backward: float = DEFAULT.backward,
        validation: Sequence[RankingExample] = (),
    ) -> Self:
        """Keep a sparse matrix of similarities [I, I].

        Args:
            train_interactions: frame with `user_id` and `item_id`; each user's interactions are in order.
            reach: largest distance of two items in a user's history.
            decay: see `Settings`, as for the next three.
            exponents: see `Settings`.
            half_life: see `Settings`.
            backward: see `Settings`.
            validation: examples that choose the settings, among the given ones and `GRID`, by NDCG@10 among all
                items that are not in the history. The log must not contain their targets. Default: use those given.
        """
        matrix, index = user_item_matrix(train_interactions)
        popularity = np.asarray(matrix.sum(axis=0))

        # In the grid, settings with the same decay are consecutive, so a cache of one is enough.
        @lru_cache(maxsize=1)
        def pairs(decay: float) -> sparse.csr_array:
            return _near_pairs(train_interactions, index, reach, decay)

        chosen = Settings(decay, exponents, half_life, backward)
        if validation and index:  # an empty log has no pairs to choose by
            grid = dict.fromkeys([chosen, *GRID])
            by_decay = groupby(grid, key=attrgetter("decay"))
            rows = validation[:ROWS]
            reached = chain(*(_ndcgs(pairs(d), popularity, index, rows, [*own]) for d, own in by_decay))
            chosen = max(zip(reached, grid, strict=True), key=itemgetter(0))[1]
        forward = pairs(chosen.decay)
        history, candidate = (sparse.diags_array(popularity**-power) for power in chosen.exponents)
        similarity = history @ (forward + chosen.backward * forward.T) @ candidate
        return cls(sparse.csr_array(similarity), index, chosen)

    @property
    def half_life(self) -> float:
        """Number of history items after which the weight is halved."""
        return self.chosen.half_life

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `fit` that give another log the chosen settings."""
        return self.chosen._asdict()

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        weights = history_matrix([q.history for q in queries], self.index, self.half_life)
        return score_by_rows(weights, lambda block: block @ self._factor, queries, self.index)

    @cached_property
    def _factor(self) -> Any:
        return quick_factor(self.similarity)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        def to_item(column: int) -> NDArray[np.float64]:
            return self.similarity[:, [column]].toarray()[:, 0]

        return history_terms(history, item, self.index, to_item, self.half_life)


def _ndcgs(
    forward: sparse.csr_array,
    popularity: NDArray[np.float64],
    index: dict[str, int],
    rows: Sequence[RankingExample],
    settings: Sequence[Settings],
) -> list[float]:
    """Return mean NDCG@10 of examples for each of these settings, which share the decay; the target loses ties.

    All items but those of the history are ranked. A target without training interactions is never found. The products
    with the pairs are computed once for all settings that differ in the candidates' exponent and `backward`.
    """

    def of_history(numbered: tuple[int, Settings]) -> tuple[float, float]:
        return numbered[1].exponents[0], numbered[1].half_life

    backward, sums = sparse.csr_array(forward.T), np.zeros(len(settings))
    found = [e for e in rows if e.target in index]
    for block in blocks(len(found), len(index)):
        of_block = found[block]
        targets = np.array([index[e.target] for e in of_block])
        seen = [[index[i] for i in {*e.history} - {e.target} if i in index] for e in of_block]
        hidden = np.repeat(np.arange(len(seen)), [*map(len, seen)]), np.fromiter(chain(*seen), np.int64)
        for (a, half_life), own in groupby(enumerate(settings), key=of_history):
            history = history_matrix([e.history for e in of_block], index, half_life)
            history = history @ sparse.diags_array(popularity**-a)
            after, before = ((history @ part).toarray() for part in (forward, backward))
            for number, tried in own:
                scores = (after + tried.backward * before) * popularity ** -tried.exponents[1]
                scores[hidden] = -np.inf
                ranks = (scores >= scores[np.arange(len(scores)), targets][:, None]).sum(axis=1)
                sums[number] += np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0).sum()
    return [*(sums / len(rows))]


def _near_pairs(log: pl.DataFrame, index: dict[str, int], reach: int, decay: float) -> sparse.csr_array:
    """Return [I, I]: Σ exp(−(d − 1) / decay) over the pairs in which column follows row at distance d ≤ reach.

    If interactions have weights, each term is multiplied by both.
    """
    kept = [c for c in ("item_id", WEIGHT) if c in log.columns]
    log = log.select(*kept, user=pl.col("user_id").rank("dense")).sort("user", maintain_order=True)
    items = np.array([index[i] for i in log["item_id"].to_list()], dtype=np.int32)
    users = log["user"].to_numpy()
    weight = log[WEIGHT].to_numpy() if WEIGHT in log.columns else None
    total = sparse.csr_array((len(index), len(index)))
    held: list[tuple[NDArray[Any], ...]] = []
    last = min(reach, len(items) - 1)
    for d in range(1, last + 1):
        same = users[:-d] == users[d:]
        before, after = items[:-d][same], items[d:][same]
        near = np.full(len(before), np.exp(-(d - 1) / decay))
        if weight is not None:
            near *= weight[:-d][same] * weight[d:][same]
        held.append((near, before, after))
        # All pairs of all distances together are `reach` times the log, so sum them in parts.
        if d == last or sum(len(w) for w, _, _ in held) >= _PAIRS_AT_A_TIME:
            weights, rows, columns = (np.concatenate(part) for part in zip(*held, strict=True))
            total, held = total + sparse.csr_array((weights, (rows, columns)), shape=total.shape), []
    return total
