"""Queries as padded arrays and sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Queries, Query
from prefrec.data.query import item_codes
from prefrec.data.types import WEIGHT

CELLS_AT_A_TIME = 8_000_000
"""Most cells of a dense block of scores in memory."""
DENSE_CELLS = 32_000_000
"""Most cells of an item × item matrix that is kept dense (256 MB), although its zeros take memory."""
DENSE_SHARE = 0.05
"""Least share of cells that are not 0 from which products with a dense matrix are quicker than with a sparse one."""

_GROUPED = 32
"""Columns of a group in `top_columns`."""


def pad_scores(rows: Sequence[Sequence[float] | NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return B rows of at most C scores as an array [B, C]; short rows are filled with -inf."""
    return _padded(rows, np.float64, -np.inf)


def pad_codes(rows: Sequence[Sequence[str]], index: Mapping[str, int]) -> NDArray[np.int64]:
    """Return codes [B, L] of the items in B rows: -1 in empty columns, len(index) for items not in `index`."""
    return _padded([item_codes(row, index) for row in rows], np.int64, -1)


def candidate_codes(queries: Sequence[Query], index: Mapping[str, int]) -> NDArray[np.int64]:
    """Return codes [B, C] of the candidates as `pad_codes` does, or [1, C] if B queries share them (`Queries`).

    The caller keeps the index for further calls: shared candidates remember it and their codes.
    """
    if isinstance(queries, Queries):
        return queries.candidates.codes(index)[None]
    return pad_codes([q.candidates for q in queries], index)


def item_scores(queries: Sequence[Query], values: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the value [B, C] of each candidate: 0 for an item without a value, -inf in empty columns."""

    def of(items: Sequence[str]) -> NDArray[np.float64]:
        return np.fromiter(map(values.get, items, repeat(0.0)), np.float64, len(items))

    if isinstance(queries, Queries):
        return np.repeat(of(queries.candidates)[None], len(queries), axis=0)
    return pad_scores([of(q.candidates) for q in queries])


def _padded(rows: Sequence[Any], dtype: type, empty: float) -> NDArray[Any]:
    out: NDArray[Any] = np.full((len(rows), max(map(len, rows), default=0)), empty, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def weighted_pairs(log: pl.DataFrame) -> pl.DataFrame:
    """Return `user_id, item_id, weight` of each pair of a user and an item in a log: the largest of its weights.

    A log without the column `WEIGHT` has weights of 1.
    """
    if WEIGHT not in log.columns:
        return log.select("user_id", "item_id").unique().with_columns(pl.lit(1.0).alias(WEIGHT))
    # Sorted, because sums of weights depend on their order in the last digit.
    return log.group_by("user_id", "item_id").agg(pl.col(WEIGHT).max()).sort("user_id", "item_id")


def user_item_matrix(train_interactions: pl.DataFrame) -> tuple[sparse.csr_array, dict[str, int]]:
    """Return the user × item matrix [U, I] and item_id → column, columns in order of item id.

    It is binary, or has the largest weight of a pair if interactions have weights.
    """
    pairs = weighted_pairs(train_interactions)
    items = pairs["item_id"].unique().sort().to_list()
    # Dense ranks of the sorted ids, from 0.
    rows, columns = (pairs[name].rank("dense").to_numpy().astype(np.int64) - 1 for name in ("user_id", "item_id"))
    shape = (pairs["user_id"].n_unique(), len(items))
    matrix = sparse.csr_array((pairs[WEIGHT].to_numpy(), (rows, columns)), shape=shape)
    return matrix, {item: i for i, item in enumerate(items)}


def history_matrix(
    histories: Sequence[Sequence[str]], index: dict[str, int], half_life: float | None = None
) -> sparse.csr_array:
    """Return weights [B, I] of the items in each history.

    The weight of an item is 2^(−age / half_life), with age 0 for the newest item, 1 for the one before, and so on.
    The weights of a repeated item are summed.

    Args:
        histories: item ids, oldest first. Items outside `index` count for the ages but have no column.
        index: item_id → column.
        half_life: age at which the weight is halved. Default: all weights are 1.
    """
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    ends, outside = np.cumsum(lengths), len(index)
    # From the newest item to the oldest one, the order in which products add up.
    newest_first = chain.from_iterable(map(reversed, histories))
    codes = np.fromiter((index.get(item, outside) for item in newest_first), np.int64, int(lengths.sum()))
    ages = np.arange(len(codes)) - np.repeat(ends - lengths, lengths)
    longest = int(lengths.max(initial=0))
    by_age = np.array([1.0 if half_life is None else 2.0 ** (-age / half_life) for age in range(longest)])
    known = codes < outside
    kept = np.concatenate([[0], np.cumsum(known)])[np.concatenate([[0], ends]).astype(np.int64)]
    shape = (len(histories), outside)
    return sparse.csr_array((by_age[ages[known]], codes[known], kept), shape=shape, dtype=np.float64)


def history_terms(
    history: Sequence[str],
    item: str,
    index: dict[str, int],
    to_item: Callable[[int], NDArray[np.float64]],
    half_life: float | None = None,
) -> NDArray[np.float64]:
    """Return the terms [L] of history items, oldest first, in a score that is a weighted sum of similarities.

    Args:
        history: item ids, oldest first. Items outside `index` have the term 0.
        item: the scored item. If it is not in `index`, all terms are 0.
        index: item_id → column.
        to_item: column of `item` → similarities [I] of all items to it.
        half_life: of the weights, as for `history_matrix`.
    """
    terms = np.zeros(len(history))
    if item in index:
        similarities = to_item(index[item])
        for n, other in enumerate(history):
            if other in index:
                weight = 1.0 if half_life is None else 2.0 ** (-(len(history) - 1 - n) / half_life)
                terms[n] = weight * similarities[index[other]]
    return terms


def quick_factor(matrix: sparse.csr_array) -> sparse.csr_array | NDArray[np.float64]:
    """Return an item × item matrix in the form, sparse or dense, whose product with sparse rows is quicker.

    The products are the same. A large matrix stays sparse, because its zeros would take too much memory.
    """
    cells = matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if cells <= DENSE_CELLS and matrix.nnz >= DENSE_SHARE * cells else matrix


def score_by_rows(
    weights: Any,
    of_items: Callable[[Any], Any],
    queries: Sequence[Query],
    index: Mapping[str, int],
) -> NDArray[np.float64]:
    """Return scores [B, C] = of_items(weights)[b, candidates of query b], computed in blocks of rows.

    A candidate outside `index` scores 0, an empty column -inf.

    Args:
        weights: sparse or dense matrix with B rows.
        of_items: returns the scores of all items, sparse or dense [b, I], for some rows of `weights`.
        queries: B queries.
        index: item_id → column of these scores, which the caller keeps (`candidate_codes`).
    """
    codes = candidate_codes(queries, index)
    is_shared = len(codes) == 1
    unknown = np.flatnonzero(codes[0] == len(index)) if is_shared else ()
    places = _places(codes[0], len(index)) if is_shared else None
    scores = np.zeros((len(queries), codes.shape[1]))
    for rows in blocks(len(queries), len(index)):
        sums = of_items(weights[rows])
        if places is not None and sparse.issparse(sums):
            parts = sums.data.astype(np.float64, copy=False), places[sums.indices], sums.indptr
            sparse.csr_array(parts, shape=scores[rows].shape).toarray(out=scores[rows])
            continue
        dense = (sums.toarray() if sparse.issparse(sums) else sums).astype(np.float64, copy=False)
        if is_shared and len(index):
            np.take(dense, codes[0], axis=1, out=scores[rows], mode="clip")  # the default mode would copy
            scores[rows, unknown] = 0.0  # they have read the last item
        else:
            # An additional column for the candidates outside `index`.
            known = np.hstack([dense, np.zeros((len(dense), 1))])
            own = codes if is_shared else codes[rows]
            scores[rows] = np.take_along_axis(known, np.where(own < 0, len(index), own), axis=1)
    return scores if is_shared else np.where(codes < 0, -np.inf, scores)


def _places(codes: NDArray[np.int64], count: int) -> NDArray[np.int64] | None:
    """Return the place [I] of each item of an index of I = `count` among candidates with these codes [C].

    None unless each item of the index is there once. Candidates outside the index have the code I.
    """
    known = np.flatnonzero(codes < count)
    places = np.full(count, -1, dtype=np.int64)
    places[codes[known]] = known
    return places if len(known) == count and (places >= 0).all() else None


def mean_ndcg(scores: NDArray[np.floating], targets: Sequence[int] | NDArray[np.int64], k: int = 10) -> float:
    """Return the mean NDCG@k of scores [B, C] with the targets' columns [B]; the target loses ties."""
    target_scores = scores[np.arange(len(scores)), np.asarray(targets, dtype=np.int64)][:, None]
    ranks = (scores >= target_scores).sum(axis=1)
    return float(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0).mean())


def blocks(n: int, width: int) -> Iterator[slice]:
    """Yield slices that cover 0..n, each of at most `CELLS_AT_A_TIME` cells of an array [n, width]."""
    step = max(1, CELLS_AT_A_TIME // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def top_columns(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Return the columns [B, k] of the k highest of scores [B, C], k ≤ C, in any order.

    The k groups of columns with the highest maxima have the k highest scores. To look for these groups first is many
    times quicker than `argpartition` of all columns.
    """
    count, groups = scores.shape[1], scores.shape[1] // _GROUPED
    if groups <= k:
        return np.argpartition(-scores, k - 1, axis=1)[:, :k].astype(np.int64)
    # Group g has the columns g, g + groups, g + 2 · groups, …; the last few columns are in none.
    highest = scores[:, : groups * _GROUPED].reshape(len(scores), _GROUPED, groups).max(axis=1)
    chosen = np.argpartition(-highest, k - 1, axis=1)[:, :k]
    members = (chosen[:, :, None] + groups * np.arange(_GROUPED)).reshape(len(scores), -1)
    rest = np.broadcast_to(np.arange(groups * _GROUPED, count), (len(scores), count - groups * _GROUPED))
    columns = np.concatenate([members, rest], axis=1)
    best = np.argpartition(-np.take_along_axis(scores, columns, axis=1), k - 1, axis=1)[:, :k]
    return np.take_along_axis(columns, best, axis=1)


def best_items(scores: NDArray[np.floating[Any]], k: int, without: Sequence[int]) -> NDArray[np.int64]:
    """Return the indices of the k highest scores, ties in order, without the indices in `without`."""
    scores = scores.copy()
    scores[without] = -np.inf
    k = min(k, len(scores) - len(without))
    if not k:
        return np.empty(0, dtype=np.int64)
    indices = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k if there are ties
    return indices[np.argsort(-scores[indices], kind="stable")][:k]
