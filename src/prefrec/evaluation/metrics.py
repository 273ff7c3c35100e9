"""HR@K, NDCG@K and MRR for one relevant item: a value per example, in expectation over ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefrec.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Callable[..., Floats]
"""Ranks [B] from 1, and numbers of other candidates tied with the target [B] (default: 0) → values [B] in [0, 1]."""


def target_ranks(scores: ArrayLike, target_index: ArrayLike) -> tuple[Ints, Ints]:
    """Return the ranks [B] of the targets, from 1, and the ties [B].

    rank = 1 + #{candidates scored above the target}; ties = #{other candidates with the target's score}. Metrics are
    expectations over random tie-breaking: constant scores give chance level, and neither the order of candidates nor
    a seed matters.

    Args:
        scores: [B, C], higher is better. Empty columns of shorter rows are -inf.
        target_index: [B], column of the target.

    Raises:
        ValueError: shapes do not fit, a score is NaN, or a target's score is -inf.
    """
    s = np.asarray(scores)
    target = _target_scores(s, np.asarray(target_index, dtype=np.int64))[:, None]
    return 1 + (s > target).sum(axis=1), (s == target).sum(axis=1) - 1


def expected_hits(scores: ArrayLike, target_index: ArrayLike) -> Floats:
    """Return HR@1 [B] in expectation over random tie-breaking: 1/#{best candidates} if the target is one, else 0.

    Arguments and errors are those of `target_ranks`.
    """
    return expectation(partial(hit_rate, k=1), *target_ranks(scores, target_index))


def _target_scores(scores: Floats, index: Ints) -> Floats:
    """Return the scores [B] of the targets, after the checks that `target_ranks` documents."""
    if scores.ndim != 2 or index.shape != scores.shape[:1]:
        raise ValueError(f"expected scores [B, C] and target_index [B], got {scores.shape} and {index.shape}")
    if ((index < 0) | (index >= scores.shape[1])).any():
        raise ValueError(f"target_index is outside the {scores.shape[1]} candidates")
    # The largest score of a row is NaN if one of them is.
    nan_rows = np.flatnonzero(np.isnan(scores.max(axis=1, initial=-np.inf)))
    if len(nan_rows):
        raise ValueError(f"{len(nan_rows)} of {len(scores)} rows have NaN scores, the first is row {nan_rows[0]}")
    targets = scores[np.arange(len(scores)), index]
    empty = np.flatnonzero(np.isneginf(targets))
    if len(empty):
        raise ValueError(f"the score of the target of row {empty[0]} is -inf, which marks an empty column")
    return targets


def expectation(gain: Callable[[Ints], Floats], ranks: Ints, tied: Ints | int = 0) -> Floats:
    """Return the expectation [B] of `gain` if ties are broken at random.

    The rank of a target is then uniform from `ranks` to `ranks + tied`.
    """
    last = ranks + tied
    up_to = np.concatenate([[0.0], np.cumsum(gain(np.arange(1, last.max(initial=0) + 1)))])
    # A difference of sums equals the gain of a single rank only up to rounding.
    return np.where(last == ranks, gain(ranks), (up_to[last] - up_to[ranks - 1]) / (1 + last - ranks))


def hit_rate(ranks: Ints, k: int) -> Floats:
    """Return HR@K [B]: 1 if rank ≤ K, else 0. With one relevant item it equals Recall@K and trec's Success@K."""
    return np.where(ranks <= k, 1.0, 0.0)


def ndcg(ranks: Ints, k: int) -> Floats:
    """Return NDCG@K [B]: 1/log2(rank + 1) if rank ≤ K, else 0.

    This is trec_eval's formula (Järvelin and Kekäläinen 2002 with gain/log2(rank + 1)) for one relevant item.
    Toolkits that do not discount rank 2 (gain/log2(max(rank, 2))) give higher numbers.
    """
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(ranks: Ints) -> Floats:
    """Return 1/rank [B]; its mean is MRR."""
    return 1.0 / ranks


def metrics_for(ks: Sequence[int]) -> dict[str, Metric]:
    """Return the metrics for cut-offs `ks`: `hr@K`, `ndcg@K` for K > 1 (NDCG@1 is HR@1), and `mrr`.

    Raise ConfigError if a cut-off is not a whole number from 1.
    """
    if any(not isinstance(k, Integral) or isinstance(k, bool) or k < 1 for k in ks):
        raise ConfigError(f"ks: cut-offs must be whole numbers of at least 1, got {list(ks)}")
    cuts = sorted(set(ks))
    gains: dict[str, Callable[[Ints], Floats]] = {f"hr@{k}": partial(hit_rate, k=k) for k in cuts}
    gains |= {f"ndcg@{k}": partial(ndcg, k=k) for k in cuts if k > 1}
    return {name: partial(expectation, gain) for name, gain in (gains | {"mrr": reciprocal_rank}).items()}


def expected_metrics(sizes: ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """Return the mean of each metric of `metrics_for` if `sizes` [B] candidates are in random order."""
    lengths = np.asarray(sizes, dtype=np.int64)
    # In a random order the target is tied with all others.
    return {n: float(m(np.ones_like(lengths), lengths - 1).mean()) for n, m in metrics_for(ks).items()}
