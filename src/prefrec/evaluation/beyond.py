"""Coverage, novelty and diversity of a ranker's top items."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Catalogue
from prefrec.rankers.words import tfidf

BEYOND = ("coverage", "novelty", "diversity")
"""Names of the metrics, without `@K`."""


def beyond_accuracy(
    predictions: pl.DataFrame, log: pl.DataFrame, catalogue: Catalogue, k: int = 10
) -> dict[str, dict[str, float]]:
    """Return ranker → metric → value of the `k` best items of each example, for predictions of `rank_catalogue`.

    - `coverage@K`: share of the catalogue's items that are in at least one top K.
    - `novelty@K`: mean over items of −log2 of the share of users who interacted with the item in the `log`. An item
      without interactions counts as one user's.
    - `diversity@K`: mean over top Ks of 1 − the mean cosine of the TF-IDF vectors of two titles.
    """
    index = catalogue.index
    users = max(log["user_id"].n_unique(), 1)
    counts = dict(log.group_by("item_id").agg(pl.col("user_id").n_unique()).iter_rows())
    surprise = -np.log2(np.array([counts.get(item, 1) for item in index]) / users)
    vectors = tfidf(list(catalogue.titles.values()))
    result = {}
    for part in predictions.partition_by("ranker", maintain_order=True):
        tops = [[index[i] for i in best] for best in part["candidates"].list.head(k).to_list()]
        shown = np.concatenate([np.array(best, dtype=np.int64) for best in tops])
        apart = [1 - _mean_cosine(vectors[best]) for best in tops if len(best) > 1]
        values = (len(np.unique(shown)) / len(index), surprise[shown].mean(), np.mean(apart) if apart else 0.0)
        result[str(part["ranker"][0])] = {f"{name}@{k}": float(v) for name, v in zip(BEYOND, values, strict=True)}
    return result


def _mean_cosine(vectors: Any) -> float:
    """Return the mean cosine of two different rows of unit vectors [K, W], which may be sparse or zero."""
    products = (vectors @ vectors.T).toarray()
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))
