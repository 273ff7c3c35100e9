"""Coverage, novelty and diversity of the best items of a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Catalogue
from prefrec.rankers.words import tfidf

BEYOND = ("coverage", "novelty", "diversity")
"""Names of the metrics, without their `@K`."""


def beyond_accuracy(
    predictions: pl.DataFrame, log: pl.DataFrame, catalogue: Catalogue, k: int = 10
) -> dict[str, dict[str, float]]:
    """Return ranker → metric → value of the best `k` items of each row, for predictions over the whole catalogue.

    - `coverage@K`: share of the catalogue's items that stand in some list.
    - `novelty@K`: mean over the items of −log2 of the share of users who took it in the `log`; an item that nobody
      took counts as taken by one user.
    - `diversity@K`: mean over lists of 1 − cosine of the TF-IDF vectors of two of its titles.
    """
    place = {item: i for i, item in enumerate(catalogue.ids)}
    users = max(log["user_id"].n_unique(), 1)
    counts = np.ones(len(place))
    for item, count in log.group_by("item_id").agg(pl.col("user_id").n_unique()).iter_rows():
        if item in place:
            counts[place[item]] = max(count, 1)
    vectors, surprise = tfidf(list(catalogue.titles.values())), -np.log2(counts / users)
    found = {}
    for own in predictions.partition_by("ranker", maintain_order=True):
        lists = [[place[i] for i in best] for best in _best(own, k)]
        shown = np.concatenate([np.array(best, dtype=np.int64) for best in lists])
        apart = [1 - _mean_cosine(vectors[best]) for best in lists if len(best) > 1]
        values = (len(np.unique(shown)) / len(place), surprise[shown].mean(), np.mean(apart) if apart else 0.0)
        found[str(own["ranker"][0])] = {f"{name}@{k}": float(v) for name, v in zip(BEYOND, values, strict=True)}
    return found


def _best(predictions: pl.DataFrame, k: int) -> Sequence[Sequence[str]]:
    """Return the k candidates of each row with the highest scores, the first of equal ones first."""
    rows = predictions.select("candidates", "scores").iter_rows()
    return [[listed[i] for i in np.argsort(-np.array(scores), kind="stable")[:k]] for listed, scores in rows]


def _mean_cosine(vectors: Any) -> float:
    """Return the mean cosine of two different rows of unit vectors [K, W], which may be sparse or zero."""
    products = (vectors @ vectors.T).toarray()
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))
