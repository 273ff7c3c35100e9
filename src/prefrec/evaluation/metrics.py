"""HR@K, NDCG@K and MRR for lists with one relevant item, as one number per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Metric = Callable[[NDArray[np.int64]], Floats]
"""Ranks [B] (from 1) → values [B] in [0, 1]."""


def target_ranks(scores: ArrayLike, target_index: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """Return the ranks [B], from 1, of the targets among the candidates of each row.

    rank = 1 + #{candidates scored above the target} + a draw from 0..#{other candidates tied with it}. Ties are
    broken at random and not by position, so constant scores give chance level. The draw of row b depends only on
    `seed` and b: two rankers that tie on a row get the same draw, and the order of the candidates has no influence.
    Raise ValueError if shapes do not fit, a score is NaN, or a target's score is -inf.

    Of `scores` [B, C] a higher one is better; empty columns of shorter rows are -inf. `target_index` [B] is the
    column of the target.
    """
    s = np.asarray(scores, dtype=np.float64)
    index = np.asarray(target_index, dtype=np.int64)
    own = _target_scores(s, index)[:, None]
    above = (s > own).sum(axis=1)
    tied = (s == own).sum(axis=1) - 1
    # Drawn for all rows, tied or not, so that a row's draw does not depend on ties in rows before it.
    luck = np.random.default_rng(seed).random(len(s))
    return 1 + above + np.floor(luck * (tied + 1)).astype(np.int64)


def expected_hits(scores: ArrayLike, target_index: ArrayLike) -> Floats:
    """Return HR@1 [B] in expectation over random tie-breaking: 1/#{best candidates} if the target is one, else 0.

    Arguments and errors are those of `target_ranks`.
    """
    s = np.asarray(scores, dtype=np.float64)
    index = np.asarray(target_index, dtype=np.int64)
    own = _target_scores(s, index)
    best = s.max(axis=1, initial=-np.inf)
    return np.where(own == best, 1.0 / np.maximum((s == best[:, None]).sum(axis=1), 1), 0.0)


def _target_scores(scores: Floats, index: NDArray[np.int64]) -> Floats:
    """Return the scores [B] of the targets, after the checks that `target_ranks` documents."""
    if scores.ndim != 2 or index.shape != scores.shape[:1]:
        raise ValueError(f"expected scores [B, C] and target_index [B], got {scores.shape} and {index.shape}")
    if ((index < 0) | (index >= scores.shape[1])).any():
        raise ValueError(f"target_index lies outside the {scores.shape[1]} candidates")
    nan_rows = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(nan_rows):
        raise ValueError(f"{len(nan_rows)} of {len(scores)} rows hold NaN scores, the first is row {nan_rows[0]}")
    own = scores[np.arange(len(scores)), index]
    empty = np.flatnonzero(np.isneginf(own))
    if len(empty):
        raise ValueError(f"the target of row {empty[0]} is scored -inf, which marks a column without candidate")
    return own


def hit_rate(ranks: NDArray[np.int64], k: int) -> Floats:
    """Return HR@K [B]: 1 if rank ≤ K, else 0. With one relevant item it equals Recall@K and trec's Success@K."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: NDArray[np.int64], k: int) -> Floats:
    """Return NDCG@K [B]: 1/log2(rank + 1) if rank ≤ K, else 0.

    This is trec_eval's formula (Järvelin and Kekäläinen 2002 with gain/log2(rank + 1)) for one relevant item.
    Toolkits that do not discount rank 2 (gain/log2(max(rank, 2))) give higher numbers.
    """
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(ranks: NDArray[np.int64]) -> Floats:
    """Return 1/rank [B], over the whole list; its mean is MRR."""
    return 1.0 / ranks


def metrics_for(ks: Sequence[int]) -> dict[str, Metric]:
    """Return the metrics for cut-offs `ks`: `hr@K`, `ndcg@K` for K > 1 (NDCG@1 is HR@1), and `mrr`."""
    if any(k < 1 for k in ks):
        raise ValueError(f"cut-offs are at least 1, got {list(ks)}")
    cuts = sorted(set(ks))
    table: dict[str, Metric] = {f"hr@{k}": partial(hit_rate, k=k) for k in cuts}
    table |= {f"ndcg@{k}": partial(ndcg, k=k) for k in cuts if k > 1}
    return table | {"mrr": reciprocal_rank}


def expected_metrics(sizes: ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """Return the mean of each metric of `metrics_for` under a random order of `sizes` [B] candidates per row."""
    # Every rank of 1..C is then equally likely.
    lengths, times = np.unique(np.asarray(sizes, dtype=np.int64), return_counts=True)
    orders = [np.arange(1, c + 1) for c in lengths]
    return {
        name: float(np.average([metric(ranks).mean() for ranks in orders], weights=times))
        for name, metric in metrics_for(ks).items()
    }
