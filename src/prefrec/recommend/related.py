"""Items that are related to an item: what is bought beside it (complements), and what is like it (substitutes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data import PreparedData, Query
from prefrec.errors import DataError
from prefrec.rankers.base import Ranker, Recommendation, SumRanker, VectorRanker
from prefrec.rankers.baselines import ItemKNNRanker, TitleTfidfRanker
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.matrices import score_by_rows
from prefrec.recommend.questions import Question, answer_all
from prefrec.recommend.rules import Relation


def related_by_ranker(relation: Relation, ranker: Ranker) -> Ranker | None:
    """Return what ranks items by their relation to the last item of a history, by a ranker's own notion of it.

    - `also_bought`: the ranker itself, if its score is a sum over history items that comes from the log (window
      co-occurrence, item-kNN, EASE, co-occurrence).
    - `similar`: the cosine of the ranker's item vectors, if it has some (title towers, language models with item-ID
      tokens), or title TF-IDF itself.

    None if the ranker has no such notion. *Buy again* has neither, because it scores the items of the history alone.
    """
    if relation == "similar":
        if isinstance(ranker, VectorRanker) and (found := ranker.item_vectors()):
            return VectorSimilarity(f"item vectors of {ranker.name}", *found)
        return ranker if isinstance(ranker, TitleTfidfRanker) else None
    # Title towers are sums, too, but over titles.
    is_of_log = not isinstance(ranker, VectorRanker | TitleTfidfRanker | BuyAgainRanker)
    return ranker if is_of_log and isinstance(ranker, SumRanker) else None


def related_by_data(relation: Relation, data: PreparedData) -> Ranker:
    """Return what ranks items by a relation for rankers without a notion of it: item-kNN, or title TF-IDF.

    Raise DataError if there is no log, because nothing is bought together then.
    """
    if relation == "similar":
        return TitleTfidfRanker.fit(data.catalogue)
    log = data.known_interactions("test")
    if log.is_empty():
        raise DataError(
            "only a log tells what customers also bought, and an exported language model has none: ask its run"
        )
    return ItemKNNRanker.fit(log)


def related_items(by: Ranker, question: Question) -> Recommendation:
    """Return the items whose score is above 0, best first.

    Args:
        by: ranks items by their relation to the last item of a history (`related_by_ranker`, `related_by_data`).
        question: its history is the item.

    Raises:
        ModelError: a score is NaN.
    """
    (best,) = answer_all(_Above0(by), [question])
    return best


class _Above0:
    """A ranker without a score for items whose score is 0 or less, so that they are not answered."""

    def __init__(self, ranker: Ranker) -> None:
        self.name = ranker.name
        self._ranker = ranker

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates above 0, -inf for the others."""
        scores = self._ranker.score(queries)
        return np.where(scores <= 0, -np.inf, scores)


class VectorSimilarity:
    """Score of a candidate = cosine of its vector and that of the last item of the history.

    Args:
        name: name in answers.
        ids: [I] item ids.
        vectors: [I, D] their vectors.
    """

    def __init__(self, name: str, ids: Sequence[str], vectors: NDArray[np.floating]) -> None:
        self.name = name
        self.index = {item: n for n, item in enumerate(ids)}
        vectors = np.asarray(vectors, dtype=np.float64)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return cosines [B, C] of the candidates; -inf in empty columns."""
        lasts = [self.index.get(q.history[-1], -1) for q in queries]
        own = np.array([self.vectors[n] if n >= 0 else np.zeros(self.vectors.shape[1]) for n in lasts])

        def of_items(block: Any) -> Any:
            return block @ self.vectors.T

        return score_by_rows(own, of_items, queries, self.index)
