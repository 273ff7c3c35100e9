"""AUC and NDCG within users, of scores of liked items against items that the same user disliked.

All functions take arrays [B, C] with one row per user and one column per item. `liked` and `disliked` [B, C] mark the
columns. A column that is neither is empty, and its score is ignored. Every row needs both kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from prefrec.evaluation.intervals import RESAMPLES, Bootstrap, Interval, Result
from prefrec.evaluation.metrics import Floats as Floats
from prefrec.evaluation.outcome import Comparison, compare_columns

Mask = NDArray[np.bool_]


def within_user_auc(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the AUC [B] of each row: the share of its pairs (liked, disliked) in the right order; a tie is ½."""
    pairs = liked[:, :, None] & disliked[:, None, :]
    # Empty columns may be −inf or NaN, which a product with False would not remove.
    s = np.where(liked | disliked, scores, 0.0)
    first, second = s[:, :, None], s[:, None, :]
    won = (first > second) + 0.5 * (first == second)
    return np.asarray((won * pairs).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2)))


def liked_ndcg(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the NDCG [B] of each row over its whole list.

    A liked item gains 1, discounted by 1/log2(rank + 1). Tied items share the discounts of their ranks, which is the
    expectation over random tie-breaking (McSherry and Najork 2008).
    """
    present = liked | disliked
    s = np.where(present, scores, -np.inf)
    other = present[:, None, :]
    above = ((s[:, None, :] > s[:, :, None]) & other).sum(axis=2)
    tied = np.maximum(((s[:, None, :] == s[:, :, None]) & other).sum(axis=2), 1)
    up_to = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(scores.shape[1]) + 2.0))])
    # Empty columns rank below all others and gain nothing. Their ranks are clipped to the end of the table.
    last = np.minimum(above + tied, scores.shape[1])
    gained = np.where(liked, (up_to[last] - up_to[above]) / tied, 0.0).sum(axis=1)
    return np.asarray(gained / up_to[liked.sum(axis=1)])


METRICS = {"auc": within_user_auc, "ndcg": liked_ndcg}


def mixture(first: Floats, second: Floats, weight: float) -> Floats:
    """Return first + weight·second [B, C], or only the second if the weight is infinite."""
    return second if math.isinf(weight) else first + weight * second


def best_weight(first: Floats, second: Floats, liked: Mask, disliked: Mask) -> float:
    """Return the weight of `second` in the mixture that explains these rows best; ∞ if `first` says nothing.

    Logistic regression on pairs: P(liked above disliked) = σ(a·Δfirst + b·Δsecond), each row with a weight of 1 in
    all; the weight is b/a. Few rows suffice for it, where the AUC of a grid of weights is mostly noise.
    """
    row, i, j = np.nonzero(liked[:, :, None] & disliked[:, None, :])
    gaps = np.stack([s[row, i] - s[row, j] for s in (first, second)], axis=1)
    scale = np.maximum(np.sqrt((gaps**2).mean(axis=0)), 1e-12)
    share = 1 / (liked.sum(axis=1) * disliked.sum(axis=1))[row]

    def loss(ab: Floats) -> float:
        # The small square keeps the weights finite where a score puts all pairs in order.
        return float(share @ np.logaddexp(0, -(gaps / scale) @ ab) + 1e-3 * ab @ ab)

    a, b = minimize(loss, np.ones(2)).x / scale
    return 0.0 if b <= 0 else math.inf if a <= 0 else float(b / a)


def spread(scores: Floats, present: Mask) -> float:
    """Return the standard deviation of scores within rows, or 1 if the scores of each row are equal."""
    # Differences between rows do not affect the ranking within a row, so they must not count.
    kept = np.where(present, scores, 0.0)
    means = kept.sum(axis=1, keepdims=True) / present.sum(axis=1, keepdims=True)
    deviations = (scores - means)[present]
    return float(np.sqrt((deviations**2).mean())) or 1.0


@dataclass(frozen=True)
class Preferences(Result):
    """The result of an evaluation of scores on liked and disliked items.

    Attributes:
        metrics: name of the scores → `auc` and `ndcg`, means over users.
        differences: paired differences.
        weights: name of the scores → weight of the reward in them, chosen on validation users.
        users: number of test users.
        chosen_on: number of validation users that the weights were chosen on.
    """

    metrics: dict[str, dict[str, Interval]]
    differences: list[Comparison]
    weights: dict[str, float]
    users: int
    chosen_on: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite weight is the text `inf`."""
        weights = {name: "inf" if math.isinf(w) else w for name, w in self.weights.items()}
        return super().to_json() | {"weights": weights}

    def weight_sentence(self) -> str:
        """Return the chosen weights in a sentence; "" if there are none."""
        weights = [f"{name}: {'∞' if math.isinf(w) else f'{w:g}'}" for name, w in self.weights.items()]
        return f"Weights, chosen on {self.chosen_on} validation users: {'; '.join(weights)}" if weights else ""


def evaluate_preferences(
    scores: Mapping[str, Floats],
    liked: Mask,
    disliked: Mask,
    users: Sequence[str],
    compare: Sequence[tuple[str, str]] = (),
    weights: Mapping[str, float] | None = None,
    chosen_on: int = 0,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Preferences:
    """Return AUC and NDCG of `scores`, name → [B, C], with intervals by bootstrap over `users` [B].

    `compare` are pairs of names, for paired differences of the first minus the second. `weights` and `chosen_on` are
    kept with the numbers.
    """
    values = {(n, m): metric(s, liked, disliked) for n, s in scores.items() for m, metric in METRICS.items()}
    bootstrap = Bootstrap(values, users, resamples, seed)
    differences, users_in_all = compare_columns(bootstrap, compare), bootstrap.size[1]
    return Preferences(bootstrap.table(), differences, dict(weights or {}), users_in_all, chosen_on)
