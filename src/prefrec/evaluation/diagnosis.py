"""Describe a data set in a few numbers: its targets, and the simple rules that predict them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation.intervals import MIN_USERS, Interval, Means, Number, Result
from prefrec.evaluation.metrics import Floats, expectation, ndcg, target_ranks
from prefrec.evaluation.shortcuts import neighbours
from prefrec.rankers.base import Ranker
from prefrec.rankers.words import tfidf

TOP = 10
"""Number of targets that count as the most frequent ones."""
DIFFERENT = 2.0
"""Targets and negatives differ if items without interactions are this many times as common among targets."""


@dataclass(frozen=True, eq=False)
class Diagnosis(Result):
    """Numbers that describe a data set and its candidate sets under test.

    Attributes:
        n, targets: numbers of examples under test and of distinct targets.
        new_rows, new_targets: share of examples whose target has no training interaction, and number of such targets.
        new_negatives, new_items: share of negatives, and of the catalogue's items, without training interactions; NaN
            without negatives.
        top_share: share of examples with one of the `TOP` most frequent targets.
        successors: distinct items that follow an item in training histories, mean over items.
        alike, alike_random: mean TF-IDF cosine of the titles of an item and its successor, and of two random items.
        history_gain: NDCG@10 of the best rule with the whole history, minus with its last item only.
        history_rule: name of that rule.
    """

    n: int
    targets: int
    new_rows: float
    new_targets: int
    new_negatives: Number
    new_items: float
    top_share: float
    successors: float
    alike: float
    alike_random: float
    history_gain: Interval
    history_rule: str

    @property
    def classes_differ(self) -> bool:
        """True if items without interactions are much more common among targets than among negatives."""
        return self.new_rows > max(DIFFERENT * self.new_negatives, 0.01)

    @property
    def classes(self) -> str:
        """The classes of targets, negatives and catalogue in words."""
        return (
            f"{self.new_rows:.1%} of the targets ({self.new_targets:,} distinct items), {self.new_negatives:.1%} of "
            f"the negatives and {self.new_items:.1%} of the catalogue have no training interaction"
        )

    @property
    def sentences(self) -> list[str]:
        """The diagnosis in words."""
        gain = self.history_gain
        ends = "no interval" if gain.users < MIN_USERS else f"{gain.low:.3f}, {gain.high:.3f}"
        return [
            f"{self.targets:,} distinct targets in {self.n:,} examples; the {TOP} most frequent are the targets of "
            f"{self.top_share:.1%} of the examples; {self.classes}.",
            f"An item has {self.successors:.1f} different successors on average. Titles of an item and its successor "
            f"have a TF-IDF cosine of {self.alike:.3f}, those of two random items {self.alike_random:.3f}.",
            f"History beyond the last item adds {gain.mean:+.3f} [{ends}] NDCG@10 to {self.history_rule}.",
        ]


def diagnose(
    examples: Sequence[RankingExample], catalogue: Catalogue, log: pl.DataFrame, rules: Sequence[Ranker]
) -> Diagnosis:
    """Return the diagnosis of examples under test, given the training log and fitted `rules` that use histories."""
    known = set(log["item_id"].unique())
    counts = pl.Series([e.target for e in examples], dtype=pl.String).value_counts(sort=True)
    new = counts.filter(~pl.col(counts.columns[0]).is_in(list(known)))
    index = catalogue.index
    steps = neighbours(log, index)
    vectors = tfidf(catalogue.titles_of(catalogue.ids))
    random = np.random.default_rng(0).integers(len(index), size=(2, 10_000))

    def alike(a: np.ndarray, b: np.ndarray, weights: Floats) -> float:
        cosines = np.asarray(vectors[a].multiply(vectors[b]).sum(axis=1)).ravel()
        return float(np.average(cosines, weights=weights)) if weights.sum() else 0.0

    pairs = np.array(list(steps), dtype=np.int64).reshape(-1, 2)
    times = np.array(list(steps.values()), dtype=np.float64)
    rule, gain = _history_gain(examples, rules)
    is_new = [item not in known for e in examples for item in e.candidates if item != e.target]
    return Diagnosis(
        len(examples),
        len(counts),
        float(new["count"].sum() / len(examples)),
        len(new),
        sum(is_new) / len(is_new) if is_new else float("nan"),
        1 - len(known & set(catalogue.ids)) / max(len(catalogue), 1),
        float(counts["count"][:TOP].sum() / len(examples)),
        len(pairs) / max(len(np.unique(pairs[:, 0])), 1),
        alike(pairs[:, 0], pairs[:, 1], times),
        alike(random[0], random[1], np.ones(random.shape[1])),
        gain,
        rule,
    )


def row_ndcg(scores: Floats, target_index: ArrayLike) -> Floats:
    """Return NDCG@10 [B] of scores [B, C], in expectation over ties."""
    return expectation(partial(ndcg, k=10), *target_ranks(scores, target_index))


def _history_gain(examples: Sequence[RankingExample], rules: Sequence[Ranker]) -> tuple[str, Interval]:
    """Return the best rule by NDCG@10, and how much it gains by the history before the last item."""
    index = [e.target_index for e in examples]
    short = [replace(e, history=e.history[-1:], history_times=()) for e in examples]
    values = {rule.name: row_ndcg(rule.score(examples), index) for rule in rules}
    best = max(rules, key=lambda rule: float(values[rule.name].mean()))
    both = {"whole": values[best.name], "last": row_ndcg(best.score(short), index)}
    difference = Means(both, [e.user_id for e in examples]).difference("whole", "last")
    return best.name, Interval(*(getattr(difference, f.name) for f in fields(Interval)))
