"""The result of an evaluation, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict

from prefrec.evaluation.intervals import (
    Means,
    Number,
    PairedDifference,
    Result,
    Share,
    holm,
    plain,
    too_few_users,
    within,
)
from prefrec.evaluation.labels import as_table, metric_label, metric_text
from prefrec.evaluation.verdict import Verdict

Values = dict[str, dict[str, NDArray[np.float64]]]
"""Ranker → metric → values in the order of the examples: one per example, or per example with text."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison(PairedDifference):
    """A paired difference of two rankers: metric of `ranker` minus metric of `against`.

    Attributes:
        ranker, against: names of the rankers.
        metric: name of the metric.
        adjusted_p: p-value after Holm's correction over all comparisons of the table on `FAMILY`; NaN for other
            metrics.
    """

    ranker: str
    against: str
    metric: str
    adjusted_p: Number = math.nan

    @property
    def stands(self) -> bool:
        """True if the difference is significant after the correction: `adjusted_p` is below 0.05."""
        return self.adjusted_p < 0.05


Gap = Annotated[Comparison, AfterValidator(partial(within, -1.0))]
"""A difference of two metrics; another value than −1 to 1 in JSON is damage."""

FAMILY = "ndcg@10"
"""The metric whose p-values are corrected for multiple comparisons."""


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of a table with `adjusted_p` where the metric is `FAMILY`."""
    members = [i for i, c in enumerate(comparisons) if c.metric == FAMILY]
    result = list(comparisons)
    for i, p in zip(members, holm([result[i].p_value for i in members]), strict=True):
        result[i] = replace(result[i], adjusted_p=p)
    return result


def compare_columns(means: Means, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Return the comparisons of pairs (ranker, against), on all metrics for which some row has values of both.

    The keys of the columns are (ranker, metric).
    """
    return [
        Comparison(ranker=r, against=against, metric=m, **vars(means.difference((r, m), (against, m))))
        for ranker, against in pairs
        for r, m in means.values
        if r == ranker and (against, m) in means.values and means.common((r, m), (against, m))
    ]


@dataclass(frozen=True, eq=False)
class Group(Result):
    """The result on some of the examples."""

    metrics: dict[str, dict[str, Share]]  # ranker → metric → interval
    n: int  # examples
    users: int  # distinct users
    expected: dict[str, float]  # metric → its expectation if candidates are in random order
    items: int = field(default=0, kw_only=True)  # distinct targets; 0: not known


@dataclass(frozen=True, eq=False)
class Evaluation(Group):
    """The result of an evaluation, with rankers in the order given.

    Attributes:
        comparisons: paired differences of rankers.
        chance: HR@1 of a random ranker, the mean of 1/C.
        audit: of the candidate sets under test, or why there is none. Its verdict is above every table.
        best_reference: the baseline that models are compared with, or None.
        groups: `warm` and `new` → result on the examples whose target has, or does not have, training interactions;
            {} if the examples were not split.
        by_class, by_count: group of the target's item (`prefrec.evaluation.targets`) → result on its examples; {} if
            they were not split.
        by_repeat: `repeat` and `new to the user` → result on the examples whose target the user had before, or had
            not; {} if the data do not keep repeats.
        logs: ranker → the interactions that it was trained on; {} if that is not known. A ranker that reads none
            is absent.
        values, predictions: values per example, and a frame of `PREDICTION_SCHEMA`. Neither is in the JSON.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    comparisons: list[Gap]
    chance: float
    audit: Verdict
    best_reference: str | None = None
    groups: dict[str, Group] = field(default_factory=dict)
    by_class: dict[str, Group] = field(default_factory=dict)
    by_count: dict[str, Group] = field(default_factory=dict)
    by_repeat: dict[str, Group] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    values: Values = field(default_factory=dict, compare=False, repr=False)
    predictions: pl.DataFrame | None = field(default=None, compare=False, repr=False)

    @property
    def rankers(self) -> list[str]:
        """Names of the rankers, in the order of the table."""
        return list(self.metrics)

    @property
    def measured(self) -> list[str]:
        """Names of all metrics, in the order of the table."""
        return list(dict.fromkeys(m for intervals in self.metrics.values() for m in intervals))

    def frame(self) -> pl.DataFrame:
        """Return a row per ranker, and a column per metric with its mean and 95% interval as text."""
        columns = {metric_label(m): [metric_text(of.get(m)) for of in self.metrics.values()] for m in self.measured}
        return pl.DataFrame({"ranker": self.rankers} | columns)

    def __repr__(self) -> str:
        return f"{self.audit.verdict}\n{as_table(self.frame())}\n{self._size}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.audit.verdict)}</p>{as_table(self.frame(), '_repr_html_')}<p>{self._size}</p>"

    @property
    def _size(self) -> str:
        chance = f"chance HR@1 {self.chance:.3f}"
        if few := too_few_users(self.users):
            return f"n = {self.n:,} examples; {chance}. {few}"
        return f"n = {self.n:,} examples of {self.users:,} users, with 95% intervals; {chance}"

    def difference(self, ranker: str, against: str, metric: str) -> PairedDifference:
        """Return the comparison of two rankers on a metric; raise KeyError if it was not made."""
        for c in self.comparisons:
            if (c.ranker, c.against, c.metric) == (ranker, against, metric):
                return c
        raise KeyError(f"{ranker} was not compared with {against} on {metric}")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"verdict": self.audit.verdict} | plain(self) | {"audit": self.audit.to_json()}
