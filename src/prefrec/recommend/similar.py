"""Rank items by their similarity to an item: by a ranker's own notion of it, else by the log and titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.base import Ranker, SumRanker, VectorRanker
from prefrec.rankers.baselines import ItemKNNRanker, TitleTfidfRanker
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.matrices import score_by_rows


def own_similarity(ranker: Ranker) -> Ranker | None:
    """Return a ranker by similarity to the last item of a history, by the notion of `ranker`; None if it has none.

    - rankers with item vectors (`VectorRanker`), such as title towers and language models with item-ID tokens: the
      cosine of these.
    - other rankers whose score is a sum over history items (window co-occurrence, item-kNN, title TF-IDF, EASE,
      co-occurrence): the term of that item. *Buy again* has none, because it scores the items of the history alone.
    """
    if isinstance(ranker, VectorRanker):
        found = ranker.item_vectors()
        return VectorSimilarity(f"item vectors of {ranker.name}", *found) if found else None
    return ranker if isinstance(ranker, SumRanker) and not isinstance(ranker, BuyAgainRanker) else None


def log_similarity(log: pl.DataFrame, catalogue: Catalogue) -> Ranker:
    """Return a ranker by similarity to the last item of a history: cosine in the log (item-kNN) + cosine of titles.

    Without a log, only by titles.
    """
    titles = TitleTfidfRanker.fit(catalogue)
    return titles if log.is_empty() else SummedSimilarity([ItemKNNRanker.fit(log), titles])


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

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return cosines [B, C] of the candidates; -inf in empty columns."""
        lasts = [self.index.get(e.history[-1], -1) for e in examples]
        own = np.array([self.vectors[n] if n >= 0 else np.zeros(self.vectors.shape[1]) for n in lasts])

        def of_items(block: Any) -> Any:
            return block @ self.vectors.T

        return score_by_rows(own, of_items, examples, self.index)


class SummedSimilarity:
    """Score of a candidate = sum of its scores by several rankers, after the last item of the history."""

    def __init__(self, parts: Sequence[Ranker]) -> None:
        self.name = " + ".join(part.name for part in parts)
        self.parts = parts

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        alone = [replace(e, history=e.history[-1:]) for e in examples]
        scores: NDArray[np.float64] = np.sum([part.score(alone) for part in self.parts], axis=0)
        return scores
