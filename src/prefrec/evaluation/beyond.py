"""Coverage, novelty and diversity of a ranker's top items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

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
        several = [best for best in tops if len(best) > 1]
        diversity = 1 - _mean_cosines(vectors, several).mean() if several else 0.0
        values = (len(np.unique(shown)) / len(index), surprise[shown].mean(), diversity)
        result[str(part["ranker"][0])] = {f"{name}@{k}": float(v) for name, v in zip(BEYOND, values, strict=True)}
    return result


def _mean_cosines(vectors: sparse.csr_array, lists: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return for each list of rows of unit vectors [I, W], which may be zero, the mean cosine of two of them [B]."""
    sizes = np.array([len(rows) for rows in lists])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    listed = sparse.csr_array((np.ones(ends[-1]), np.concatenate(lists), ends), shape=(len(lists), vectors.shape[0]))
    # The square of a sum has the product of each pair twice, and the square of each vector.
    of_sums = np.asarray((listed @ vectors).power(2).sum(axis=1)).ravel()
    of_vectors = listed @ np.asarray(vectors.power(2).sum(axis=1)).ravel()
    result: NDArray[np.float64] = (of_sums - of_vectors) / (sizes * (sizes - 1))
    return result
