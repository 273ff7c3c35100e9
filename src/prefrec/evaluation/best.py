"""Choose the best ranker on some examples, of which slow rankers scored fewer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prefrec.evaluation.intervals import Result
from prefrec.evaluation.labels import metric_label
from prefrec.evaluation.metrics import Floats

METRIC = "ndcg@10"


@dataclass(frozen=True, eq=False)
class Best(Result):
    """The best ranker on validation examples.

    Attributes:
        ranker: its name.
        metric: name of the metric.
        values: ranker → mean of the metric.
        rows: ranker → number of examples.
    """

    ranker: str
    metric: str
    values: dict[str, float]
    rows: dict[str, int]

    def among(self, names: Collection[str]) -> str | None:
        """Return the best of some rankers; None if none of them was measured."""
        known = {name: value for name, value in self.values.items() if name in names}
        return self.ranker if self.ranker in known else max(known, key=known.__getitem__, default=None)

    @property
    def sentence(self) -> str:
        """The result in words."""

        def shown(name: str) -> str:
            return f"{self.values[name]:.3f} on {self.rows[name]:,} examples"

        others = sorted((n for n in self.values if n != self.ranker), key=lambda n: -self.values[n])
        after = "".join(f"; {name}: {shown(name)}" for name in others[:1])
        metric = metric_label(self.metric)
        return f"Best on validation: {self.ranker} ({metric} {shown(self.ranker)}{after})"


def choose(values: dict[str, Floats]) -> Best:
    """Return the best ranker by its values [B]; NaN marks an example that a slow ranker did not score.

    The best of the rankers with all examples is compared with each other one on the examples that both scored.
    """
    rows = {name: int(np.isfinite(column).sum()) for name, column in values.items()}
    most = max(rows.values())
    best = max((name for name in values if rows[name] == most), key=lambda name: float(values[name].mean()))

    def lead(name: str) -> float:
        return float(np.nanmean(values[name] - values[best]))

    return Best(
        ranker=max([best, *(name for name in values if rows[name] < most)], key=lead),
        metric=METRIC,
        values={name: float(np.nanmean(column)) for name, column in values.items()},
        rows=rows,
    )
