"""AUC and NDCG within users, of scores of liked items against items that the same user disliked.

All functions take arrays [B, C] with one row per user and one column per item. `liked` and `disliked` [B, C] mark the
columns. A column that is neither is empty, and its score is ignored. Every row needs both kinds.

A score that knows no user has the same value for all of them. It can put items in order, and so have a high AUC
within users, but it cannot tell who likes a given item from who dislikes it: its `within_item_auc` is ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from prefrec.evaluation.intervals import Interval, Means, Result, Share, half_length, jackknife
from prefrec.evaluation.metrics import Floats as Floats
from prefrec.evaluation.outcome import Gap, compare_columns

Mask = NDArray[np.bool_]
Judged = dict[str, list[tuple[int, float]]]
"""Item → rows and scores of those who liked it, or of those who disliked it."""


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
ITEM_AUC = "item_auc"
MOST_USERS = 2000
"""Users whose answers are compared with each other: time and memory grow with the square of their number."""


def personal_part(scores: Floats, swapped: Floats, present: Mask) -> Floats:
    """Return what scores [B, C] say of the row's own user: less the mean of `swapped`, and less the row's mean.

    `swapped` [K, B, C] are scores of the same items after the histories of K other users. What an item has for all
    users falls out, and what a user has for all items of the row; a score that knows no user becomes 0.
    """
    gap = np.where(present, scores - swapped.mean(axis=0), 0.0)
    return np.where(present, gap - gap.sum(axis=1, keepdims=True) / present.sum(axis=1, keepdims=True), 0.0)


def within_item_auc(
    scores: Floats,
    liked: Mask,
    disliked: Mask,
    items: Sequence[Sequence[str]],
) -> Interval:
    """Return the AUC over users: of an item's pairs (user who liked it, user who disliked it), the share in order.

    `items` are those of the rows [B], in the order of columns. Each row is a user, and the first `MOST_USERS` count.
    Pairs of all items weigh alike; a tie is ½. The interval is by the jackknife over users: a user is left out
    with all pairs. `n` is the number of pairs; without any, all is NaN.
    """
    first = slice(MOST_USERS)
    won, pairs = _pairs_over_users(scores[first], liked[first], disliked[first], items[first])
    if not pairs.any():
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    auc, counted = float(won.sum() / pairs.sum()), pairs.any(axis=0) | pairs.any(axis=1)
    above, below = ((m.sum() - m.sum(axis=0) - m.sum(axis=1))[counted] for m in (won, pairs))
    # Of pairs that all have a user in common nothing is left without the user.
    half = half_length(*jackknife(above / below - auc)) if (below > 0).all() else math.nan
    low, high = np.clip([auc - half, auc + half], 0, 1).tolist()
    return Interval(auc, low, high, int(pairs.sum()), int(counted.sum()))


def _pairs_over_users(
    scores: Floats, liked: Mask, disliked: Mask, items: Sequence[Sequence[str]]
) -> tuple[Floats, Floats]:
    """Return [B, B]: over all items that row u liked and row v disliked, how many are in order, and how many."""
    kinds: tuple[Judged, Judged] = ({}, {})
    for row, column in np.argwhere(liked | disliked).tolist():
        kind = kinds[0 if liked[row, column] else 1]
        kind.setdefault(items[row][column], []).append((row, float(scores[row, column])))
    won, pairs = np.zeros((2, len(items), len(items)))
    for item in kinds[0].keys() & kinds[1].keys():
        (u, above), (v, below) = (map(np.array, zip(*kind[item], strict=True)) for kind in kinds)
        place = np.ix_(u, v)
        won[place] += (above[:, None] > below) + 0.5 * (above[:, None] == below)
        pairs[place] += 1
    return won, pairs


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
        metrics: name of the scores → `auc` and `ndcg`, means over users; of the personal part `item_auc`, too.
        differences: paired differences.
        weights: name of the scores → weight of the reward in them, chosen on validation users.
        users: number of test users.
        chosen_on: number of validation users that the weights were chosen on.
    """

    metrics: dict[str, dict[str, Share]]
    differences: list[Gap]
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
) -> Preferences:
    """Return AUC and NDCG of liked over disliked items, with intervals over users.

    Args:
        scores: name → scores [B, C], or [K, B, C] for means over K scores.
        liked: [B, C] which candidates the user liked.
        disliked: [B, C] which candidates the user disliked.
        users: [B] user of each question.
        compare: pairs of names, for paired differences of the first minus the second.
        weights: name → weight of the reward in a sum, kept with the result.
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
