"""Buy again: the items of a user's own history, by how often and how recently they occur."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Queries, Query, RankingExample
from prefrec.rankers.matrices import history_matrix, score_by_rows

HALF_LIVES = (math.inf, 200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0)
"""Half-lives to choose from, in interactions. The first one only counts occurrences."""
MOST_ROWS = 5000
"""Validation examples that choose the half-life."""


@dataclass(eq=False)
class BuyAgainRanker:
    """Score of candidate c = Σ over the places of c in the history of 2^(−age / half_life).

    The newest item of the history has age 0. Items that are not in the history score 0. The ranker learns nothing
    from other users; the data must keep repeats.
    """

    half_life: float = math.inf
    name: str = "buy again"

    @classmethod
    def fit(cls, validation: Sequence[RankingExample] = ()) -> Self:
        """Choose the half-life with the highest NDCG@10 in full ranking of validation examples.

        Args:
            validation: examples, of which at most about `MOST_ROWS` are read. Default: count occurrences only.
        """
        rows = validation[:: math.ceil(len(validation) / MOST_ROWS)] if len(validation) else []
        reached = {half_life: sum(_ndcg(e, half_life) for e in rows) for half_life in HALF_LIVES}
        return cls(max(reached, key=reached.__getitem__))

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        histories = [q.history for q in queries]
        if isinstance(queries, Queries):
            return history_matrix(histories, queries.candidates.places, self.half_life).toarray()
        owned = dict.fromkeys(item for q in queries for item in q.history)
        index = {item: n for n, item in enumerate(owned)}
        weights = history_matrix(histories, index, self.half_life)
        return score_by_rows(weights, lambda block: block, queries, index)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        ages = np.arange(len(history))[::-1]
        return np.where([other == item for other in history], 2.0 ** (-ages / self.half_life), 0.0)


def _ndcg(example: RankingExample, half_life: float) -> float:
    """Return NDCG@10 of an example in full ranking; the target loses ties, so a new one is never found."""
    scores: defaultdict[str, float] = defaultdict(float)
    for age, item in enumerate(reversed(example.history)):
        scores[item] += 2.0 ** (-age / half_life)
    if example.target not in scores:
        return 0.0
    rank = sum(score >= scores[example.target] for score in scores.values())
    return 1 / math.log2(rank + 1) if rank <= 10 else 0.0
