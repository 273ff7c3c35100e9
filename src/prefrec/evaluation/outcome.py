"""The result of an evaluation, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.evaluation.audit import Audit
from prefrec.evaluation.intervals import RESAMPLES, Interval, PairedDifference

Values = dict[str, dict[str, NDArray[np.float64]]]
"""Ranker → metric → values, in the order of the examples: of all rows, or of those with text."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two rankers: metric of `ranker` minus metric of `against`, on the same rows."""

    ranker: str
    against: str
    metric: str
    difference: PairedDifference


@dataclass(frozen=True)
class Group:
    """The result on some of the rows."""

    metrics: dict[str, dict[str, Interval]]  # ranker → metric → interval
    n: int  # rows
    users: int  # distinct users
    expected: dict[str, float]  # metric → its expectation for a random order of the candidates

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"n": self.n, "users": self.users, "expected": self.expected, "metrics": plain_metrics(self.metrics)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Group:
        """Return the group of a value made by `to_json`."""
        return cls(**value | {"metrics": read_metrics(value["metrics"])})


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: ranker → metric → interval, rankers in the order they were given.
        comparisons: paired differences.
        n, users: number of rows and of distinct users.
        chance: HR@1 of a random ranker, the mean of 1/(candidates of the row).
        seed, resamples: of tie-breaking and bootstrap.
        audit: of the lists under test, or None. Its verdict should be shown with every table.
        expected: metric → its expectation for a random order of the candidates; {} if unknown.
        best_reference: the reference row that models are compared with, or None.
        groups: `warm` and `new` → the rows whose target occurs, or does not occur, in training interactions; {} if
            the rows were not split.
        values: values per row; not in the JSON, because they follow from the predictions.
        predictions: a frame of `PREDICTION_SCHEMA`; not in the JSON.
    """

    metrics: dict[str, dict[str, Interval]]
    comparisons: list[Comparison]
    n: int
    users: int
    chance: float
    seed: int = 0
    resamples: int = RESAMPLES
    audit: Audit | None = None
    expected: dict[str, float] = field(default_factory=dict)
    best_reference: str | None = None
    groups: dict[str, Group] = field(default_factory=dict)
    values: Values = field(default_factory=dict, compare=False, repr=False)
    predictions: pl.DataFrame | None = field(default=None, compare=False, repr=False)

    @property
    def rankers(self) -> list[str]:
        """Names, in the order of the table."""
        return list(self.metrics)

    @property
    def measured(self) -> list[str]:
        """Names of all metrics, in the order of the table."""
        return list(dict.fromkeys(m for intervals in self.metrics.values() for m in intervals))

    def difference(self, ranker: str, against: str, metric: str) -> PairedDifference:
        """Return the comparison of two rankers on a metric; raise KeyError if it was not made."""
        for c in self.comparisons:
            if (c.ranker, c.against, c.metric) == (ranker, against, metric):
                return c.difference
        raise KeyError(f"{ranker} was not compared with {against} on {metric}")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "metrics": plain_metrics(self.metrics),
            "comparisons": [
                {"ranker": c.ranker, "against": c.against, "metric": c.metric, **c.difference.to_json()}
                for c in self.comparisons
            ],
            "audit": self.audit.to_json() if self.audit else None,
            "groups": {name: group.to_json() for name, group in self.groups.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        """Return the evaluation of a value made by `to_json`, without values and predictions."""
        return cls(
            metrics=read_metrics(value["metrics"]),
            comparisons=[
                Comparison(c["ranker"], c["against"], c["metric"], PairedDifference.from_json(c))
                for c in value["comparisons"]
            ],
            audit=Audit.from_json(value["audit"]) if value["audit"] else None,
            groups={name: Group.from_json(group) for name, group in value["groups"].items()},
            **{name: value[name] for name in _PLAIN},
        )


_PLAIN = ("n", "users", "chance", "seed", "resamples", "expected", "best_reference")


def plain_metrics(metrics: dict[str, dict[str, Interval]]) -> dict[str, dict[str, Any]]:
    """Return metrics as plain JSON values."""
    return {name: {m: i.to_json() for m, i in intervals.items()} for name, intervals in metrics.items()}


def read_metrics(value: dict[str, Any]) -> dict[str, dict[str, Interval]]:
    """Return the metrics of a value made by `plain_metrics`."""
    return {name: {m: Interval.from_json(i) for m, i in intervals.items()} for name, intervals in value.items()}
