"""Retrieve, then rank: one ranker narrows a list of any length to K items, another one orders these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata  # type: ignore[import-untyped]

from prefrec.data import RankingExample
from prefrec.rankers.base import Ranker, checked_scores
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.reference import RandomRanker
from prefrec.rankers.rows import pad_scores


class RetrieveThenRankConfig(RankerConfig):
    """Which two rankers, and how many items go from one to the other."""

    kind: Literal["retrieve-then-rank"] = "retrieve-then-rank"
    name: str = Field("retrieve-then-rank", description="Folder, and name in the tables.")
    retriever: str = Field("SASRec", description="Name of a reference row, or of a ranker made before this one.")
    ranker: str = Field("s-dpo", description="Name of a ranker made before this one, usually a language model.")
    retrieve: int = Field(20, ge=1, description="Items that the retriever hands on.")


class RetrieveThenRank:
    """Orders the K items that a retriever likes best by another ranker; the others follow in the retriever's order.

    With the whole catalogue as candidates (`prefrec.evaluation.whole_catalogue`) it is a recommender over all
    items. Its ranker sees K candidates in an order drawn at random, as in lists that it was trained on, so that
    what it says is its own; where the retriever is indifferent at place K, luck decides. Both draws depend on seed,
    user, history and item alone.

    Args:
        name: in the tables.
        retriever: scores all candidates.
        ranker: scores the K.
        k: how many.
        seed: of the draws.
    """

    def __init__(self, name: str, retriever: Ranker, ranker: Ranker, k: int, *, seed: int = 0) -> None:
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        self.name = name
        self.retriever = retriever
        self.ranker = ranker
        self.k = k
        self._luck = RandomRanker(seed)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C] of the candidates: places from the last, ties kept; -inf in empty places.

        Raises:
            ModelError: a score of one of the two rankers is NaN.
        """
        liked = checked_scores(self.retriever, examples)
        luck = self._luck.score(examples)
        picked = [
            _best(row[: len(e.candidates)], draw[: len(e.candidates)], self.k)
            for row, draw, e in zip(liked, luck, examples, strict=True)
        ]
        asked = [_question(e, columns) for e, columns in zip(examples, picked, strict=True)]
        orders = checked_scores(self.ranker, asked)
        rows = zip(examples, liked, picked, orders, strict=True)
        return pad_scores([_merge(row[: len(e.candidates)], p, order[: len(p)]) for e, row, p, order in rows])


def _best(liked: NDArray[np.float64], luck: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Columns of the k best liked of a row, in a random order."""
    best = np.lexsort((luck, -liked))[:k]
    return best[np.argsort(luck[best])]


def _question(example: RankingExample, columns: NDArray[np.int64]) -> RankingExample:
    """What the ranker is asked. It is not told the target, which may not be among them: the first stands for it."""
    candidates = tuple(example.candidates[c] for c in columns)
    return RankingExample(example.user_id, example.history, candidates, candidates[0])


def _merge(liked: NDArray[np.float64], picked: NDArray[np.int64], order: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores [C] of one row: the picked above the others, each group in its own ranker's order."""
    scores = -rankdata(-liked, method="dense").astype(np.float64)
    scores[picked] = rankdata(order, method="dense")
    return scores
