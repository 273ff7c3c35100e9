"""AUC and NDCG within users: how scores rank a user's liked items above the disliked ones.

All functions take arrays [B, C] with one row per user and one column per item. The masks `liked` and `disliked`
[B, C] mark the columns. A column that is neither is empty, and its score is ignored. Every row needs both kinds.

A score that does not depend on the user can have a high AUC within users, because it ranks items. It cannot tell who
likes a given item from who dislikes it, so its `within_item_auc` is ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.evaluation.intervals import MIN_USERS, Interval, Means, Result, Share, half_length, jackknife
from prefrec.evaluation.metrics import Floats as Floats
from prefrec.evaluation.outcome import Gap, compare_columns

Mask = NDArray[np.bool_]


def within_user_auc(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the AUC [B]: the share of each row's pairs (liked, disliked) in the right order; a tie counts ½."""
    pairs = liked[:, :, None] & disliked[:, None, :]
    # Empty columns may be −inf or NaN, which multiplying by False would not remove.
    s = np.where(liked | disliked, scores, 0.0)
    first, second = s[:, :, None], s[:, None, :]
    won = (first > second) + 0.5 * (first == second)
    return (won * pairs).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2))


def liked_ndcg(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the NDCG [B] of each row over all its items.

    A liked item gains 1, discounted by 1/log2(rank + 1). Tied items share the discounts of their ranks: the
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
    return gained / up_to[liked.sum(axis=1)]


METRICS = {"auc": within_user_auc, "ndcg": liked_ndcg}
ITEM_AUC = "item_auc"
MOST_USERS = 2000
"""Most users to compare with each other: time and memory grow with the square of their number."""


def personal_part(scores: Floats, swapped: Floats, present: Mask) -> Floats:
    """Return the personal part of scores [B, C]: minus the mean of `swapped`, and centred within rows.

    `swapped` [K, B, C] are scores of the same items after the histories of K other users. This removes what an item
    has for all users, and what a user has for all items. A score that does not depend on the user becomes 0.
    """
    gap = np.where(present, scores - swapped.mean(axis=0), 0.0)
    return np.where(present, gap - gap.sum(axis=1, keepdims=True) / present.sum(axis=1, keepdims=True), 0.0)


def within_item_auc(scores: Floats, liked: Mask, disliked: Mask, items: Sequence[Sequence[str]]) -> Interval:
    """Return the AUC over users: the share of an item's pairs (user who liked it, user who disliked it) in order.

    All pairs of all items have the same weight; a tie counts ½. The interval is a jackknife over users.

    Args:
        scores: [B, C], one row per user; only the first `MOST_USERS` rows count.
        liked, disliked: [B, C] masks.
        items: ids of each row's items [B], in the order of the columns.

    Returns:
        The mean with its interval, where `n` is the number of pairs. Without pairs, all values are NaN.
    """
    rows, columns = np.nonzero((liked | disliked)[:MOST_USERS])
    named = [items[row][column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    cells = {"item": named, "user": rows, "score": scores[rows, columns], "liked": liked[rows, columns]}
    judged = pl.DataFrame(cells, schema_overrides={"item": pl.String})
    pairs = judged.filter("liked").join(judged.filter(~pl.col("liked")), on="item")
    if pairs.is_empty():
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    likers, others, above, below = (pairs[c].to_numpy() for c in ("user", "user_right", "score", "score_right"))
    won = (above > below) + 0.5 * (above == below)
    auc, counted = float(won.mean()), np.union1d(likers, others)

    def without_each(values: Floats) -> Floats:
        """Return the sum of `values` over the pairs without each user."""
        of_each = np.bincount(likers, values, len(scores)) + np.bincount(others, values, len(scores))
        return values.sum() - of_each[counted]

    left = without_each(np.ones_like(won))
    # If one user is in all pairs, no pair is left without that user.
    is_known = len(counted) >= MIN_USERS and (left > 0).all()
    half = half_length(*jackknife(without_each(won) / left - auc)) if is_known else math.nan
    low, high = np.clip([auc - half, auc + half], 0, 1).tolist()
    return Interval(auc, low, high, len(pairs), len(counted))


def mixture(first: Floats, second: Floats, weight: float) -> Floats:
    """Return first + weight·second [B, C], or only the second if the weight is infinite."""
    return second if math.isinf(weight) else first + weight * second


def best_weight(first: Floats, second: Floats, liked: Mask, disliked: Mask) -> float:
    """Return the weight of `second` in the mixture that explains these rows best; ∞ if `first` explains nothing.

    The weight is b/a of a logistic regression on pairs, P(liked above disliked) = σ(a·Δfirst + b·Δsecond), where
    each row has a total weight of 1. This works with few rows, where the AUC over a grid of weights is mostly noise.
    """
    row, i, j = np.nonzero(liked[:, :, None] & disliked[:, None, :])
    gaps = np.stack([s[row, i] - s[row, j] for s in (first, second)], axis=1)
    scale = np.maximum(np.sqrt((gaps**2).mean(axis=0)), 1e-12)
    share = 1 / (liked.sum(axis=1) * disliked.sum(axis=1))[row]

    def loss(ab: Floats) -> float:
        # The small penalty keeps the weights finite if a score puts all pairs in order.
        return float(share @ np.logaddexp(0, -(gaps / scale) @ ab) + 1e-3 * ab @ ab)

    from scipy.optimize import minimize  # here, because it is slow to import

    a, b = minimize(loss, np.ones(2)).x / scale
    return 0.0 if b <= 0 else math.inf if a <= 0 else float(b / a)


def spread(scores: Floats, present: Mask) -> float:
    """Return the standard deviation of scores within rows, or 1 if the scores of each row are equal."""
    # Differences between rows do not affect the ranking within a row, so they do not count.
    kept = np.where(present, scores, 0.0)
    means = kept.sum(axis=1, keepdims=True) / present.sum(axis=1, keepdims=True)
    deviations = (scores - means)[present]
    return float(np.sqrt((deviations**2).mean())) or 1.0


@dataclass(frozen=True, eq=False)
class Preferences(Result):
    """The result of an evaluation of scores on liked and disliked items.

    Attributes:
        metrics: name of the scores → means over users of `auc` and `ndcg`; for the personal part also `item_auc`.
        differences: paired differences.
        weights: name of the scores → weight of the reward in them, chosen on validation users.
        users: number of test users.
        chosen_on: number of validation users that chose the weights.
    """

    metrics: dict[str, dict[str, Share]]
    differences: list[Gap]
    weights: dict[str, float]
    users: int
    chosen_on: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite weight becomes the text `inf`."""
        weights = {name: "inf" if math.isinf(w) else w for name, w in self.weights.items()}
        return super().to_json() | {"weights": weights}

    def weight_sentence(self) -> str:
        """Return the weights in a sentence; "" if there are none."""
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
) -> Preferences:
    """Return AUC and NDCG of liked over disliked items, with intervals over users.

    Args:
        scores: name → scores [B, C], or [K, B, C] for means over K scores.
        liked: [B, C] mask of candidates that the user liked.
        disliked: [B, C] mask of candidates that the user disliked.
        users: [B] user of each question.
        compare: pairs of names; each gives the paired difference of the first minus the second.
        weights: name → weight of the reward in a mixture, kept with the result.
        chosen_on: number of users that chose the weights, kept with the result.
    """
    values = {
        (n, m): _mean_of(metric, s, liked, disliked) for n, s in scores.items() for m, metric in METRICS.items()
    }
    means = Means(values, users)
    differences, users_in_all = compare_columns(means, compare), means.size[1]
    return Preferences(means.table(), differences, dict(weights or {}), users_in_all, chosen_on)


def _mean_of(metric: Callable[[Floats, Mask, Mask], Floats], scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return a metric [B] of scores [B, C], or its mean over scores [K, B, C]."""
    return np.mean([metric(s, liked, disliked) for s in scores.reshape(-1, *liked.shape)], axis=0)
