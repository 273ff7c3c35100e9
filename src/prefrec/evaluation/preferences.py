"""Does a score put what a user liked above what the same user disliked? AUC and NDCG within users, with intervals.

All functions take arrays [B, C]: one row per user, one place per item. `liked` and `disliked` [B, C] say which places
are which; a place that is neither is empty, and its score is not read. A row needs both kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from prefrec.evaluation.intervals import (
    RESAMPLES,
    Interval,
    PairedDifference,
    bootstrap_means,
    difference_of,
    interval_of,
)
from prefrec.evaluation.tables import interval_text

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, math.inf)
"""Weights of a reward that are tried; infinity is the reward alone."""
RATING_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, math.inf)
"""The same beside mean ratings, where both are standardised."""


def within_user_auc(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the AUC [B] of each row: the share of its pairs (liked, disliked) that are in order; a tie is ½."""
    pairs = liked[:, :, None] & disliked[:, None, :]
    s = np.where(liked | disliked, scores, 0.0)
    first, second = s[:, :, None], s[:, None, :]
    won = (first > second) + 0.5 * (first == second)
    return np.asarray((won * pairs).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2)))


def liked_ndcg(scores: Floats, liked: Mask, disliked: Mask) -> Floats:
    """Return the NDCG [B] of each row over its whole list.

    A liked item gains 1, discounted by 1/log2(rank + 1). Tied items share the discounts of their
    ranks, which is the expectation over random tie-breaking (McSherry and Najork 2008).
    """
    there = liked | disliked
    s = np.where(there, scores, -np.inf)
    other = there[:, None, :]
    above = ((s[:, None, :] > s[:, :, None]) & other).sum(axis=2)
    tied = np.maximum(((s[:, None, :] == s[:, :, None]) & other).sum(axis=2), 1)
    up_to = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(scores.shape[1]) + 2.0))])
    # Empty places lie below all others; they gain nothing, and their ranks are cut off at the end of the table.
    last = np.minimum(above + tied, scores.shape[1])
    gained = np.where(liked, (up_to[last] - up_to[above]) / tied, 0.0).sum(axis=1)
    return np.asarray(gained / up_to[liked.sum(axis=1)])


METRICS = {"auc": within_user_auc, "ndcg": liked_ndcg}


def mixture(first: Floats, second: Floats, weight: float) -> Floats:
    """Return first + weight·second [B, C]; with an infinite weight the second alone."""
    return second if math.isinf(weight) else first + weight * second


def best_weight(first: Floats, second: Floats, liked: Mask, disliked: Mask, weights: Sequence[float]) -> float:
    """Return the weight of the mixture with the highest mean AUC on these rows, the earliest of equal ones."""
    reached = [within_user_auc(mixture(first, second, w), liked, disliked).mean() for w in weights]
    return weights[int(np.argmax(reached))]


def spread(scores: Floats, there: Mask) -> float:
    """Return the standard deviation of scores within rows; 1 where all of each row are equal.

    What differs between rows alone ranks nothing within a row.
    """
    kept = np.where(there, scores, 0.0)
    means = kept.sum(axis=1, keepdims=True) / there.sum(axis=1, keepdims=True)
    deviations = (scores - means)[there]
    return float(np.sqrt((deviations**2).mean())) or 1.0


@dataclass(frozen=True)
class Difference:
    """A metric of `scores` minus that of `against`, on the same users."""

    scores: str
    against: str
    metric: str
    difference: PairedDifference


@dataclass(frozen=True)
class Preferences:
    """How well scores tell liked items from disliked ones.

    Attributes:
        metrics: name of the scores → `auc` and `ndcg`, means over users.
        differences: paired.
        weights: name of the scores → weight of the reward in them, chosen on validation users.
        users: under test.
        chosen_on: validation users that chose the weights.
    """

    metrics: dict[str, dict[str, Interval]]
    differences: list[Difference]
    weights: dict[str, float]
    users: int
    chosen_on: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite weight is the text `inf`."""
        return {
            "users": self.users,
            "chosen_on": self.chosen_on,
            "weights": {name: "inf" if math.isinf(w) else w for name, w in self.weights.items()},
            "metrics": {name: {m: i.to_json() for m, i in of.items()} for name, of in self.metrics.items()},
            "differences": [
                {"scores": d.scores, "against": d.against, "metric": d.metric, **d.difference.to_json()}
                for d in self.differences
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the inverse of `to_json`."""
        return cls(
            {name: {m: Interval.from_json(of[m]) for m in METRICS} for name, of in value["metrics"].items()},
            [
                Difference(d["scores"], d["against"], d["metric"], PairedDifference.from_json(d))
                for d in value["differences"]
            ],
            {name: float(w) for name, w in value["weights"].items()},
            value["users"],
            value["chosen_on"],
        )

    def weight_sentence(self) -> str:
        """Return which weights were chosen, in a sentence; "" where none was."""
        told = [f"{name}: {'∞' if math.isinf(w) else f'{w:g}'}" for name, w in self.weights.items()]
        return f"Weights, chosen on {self.chosen_on} validation users: {'; '.join(told)}" if told else ""


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
    """Return AUC and NDCG of each of `scores`, and paired differences, with intervals by bootstrap over users.

    Args:
        scores: name → [B, C].
        liked, disliked: [B, C].
        users: [B].
        compare: pairs of names: the first minus the second.
        weights, chosen_on: kept with the numbers.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    values = {(n, m): metric(s, liked, disliked) for n, s in scores.items() for m, metric in METRICS.items()}
    draws = bootstrap_means(np.stack(list(values.values()), axis=1), users, resamples, seed)
    column = {key: draws[:, i] for i, key in enumerate(values)}
    size = (len(users), len(set(users)))
    found: dict[str, dict[str, Interval]] = {name: {} for name in scores}
    for (name, metric), of_rows in values.items():
        found[name][metric] = interval_of(float(of_rows.mean()), column[name, metric], *size)
    differences = []
    for name, against in compare:
        for metric in METRICS:
            a, b = (name, metric), (against, metric)
            mean = float((values[a] - values[b]).mean())
            differences.append(Difference(name, against, metric, difference_of(mean, column[a] - column[b], *size)))
    return Preferences(found, differences, dict(weights or {}), size[1], chosen_on)


def preference_tables(found: Preferences) -> list[Table]:
    """Return the table of metrics, and that of differences where there are some."""
    caption = (
        f"liked over disliked items of {found.users} users; chance AUC 0.500; 95% intervals by bootstrap over users"
    )
    if sentence := found.weight_sentence():
        caption += f"\n{sentence}"
    first = {name: list(of.values()) for name, of in found.metrics.items()}
    second: dict[str, list[Interval]] = {}
    for d in found.differences:
        second.setdefault(f"{d.scores} − {d.against}", []).append(d.difference)
    tables = [_table("scores", first, caption)]
    return [*tables, _table("scores − against", second, "paired differences")] if second else tables


def _table(heading: str, rows: Mapping[str, Sequence[Interval]], caption: str) -> Table:
    table = Table(caption=caption, caption_justify="left")
    table.add_column(heading, no_wrap=True)
    for metric in METRICS:
        table.add_column(metric.upper(), justify="right")
    for name, cells in rows.items():
        table.add_row(name, *map(interval_text, cells))
    return table
