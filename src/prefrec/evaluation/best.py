"""Choose the ranker that answers by default: the best in full ranking of validation examples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from prefrec.evaluation.intervals import Result
from prefrec.evaluation.labels import metric_label
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.targets import NEW_TO_USER, REPEAT

METRIC = "ndcg@10"
_ITEMS = {REPEAT: "repeats", NEW_TO_USER: "items that are new to the user"}


@dataclass(frozen=True, eq=False)
class Best(Result):
    """The best ranker in full ranking of validation examples. `fit`, `serve`, `recommend` and `export` use it.

    Attributes:
        ranker: its name.
        metric: name of the metric.
        values: ranker → mean of the metric.
        rows: ranker → number of examples that it ranked. Slow rankers rank a sample.
        leads: ranker → mean difference to the best of the rankers with all examples, on the ranker's own examples.
        unranked: ranker → why it ranked no example and therefore cannot be the default.
        by_repeat: for data that keep repeats, `repeat` and `new to the user` → the best on examples of that kind. For
            those whose target is new to the user, items that the user has are not ranked.
    """

    ranker: str
    metric: str
    values: dict[str, float]
    rows: dict[str, int]
    leads: dict[str, float]
    unranked: dict[str, str] = field(default_factory=dict)
    by_repeat: dict[str, Best] = field(default_factory=dict)

    def among(self, names: Collection[str]) -> str | None:
        """Return the best of some rankers; None if none of them was measured."""
        known = {name: lead for name, lead in self.leads.items() if name in names}
        return max(known, key=known.__getitem__, default=None)

    @property
    def defaults(self) -> list[str]:
        """Names of the ranker that answers by default, and of the one for items that are new to the user."""
        new = self.by_repeat.get(NEW_TO_USER)
        return list(dict.fromkeys([self.ranker, *([new.ranker] if new else [])]))

    @property
    def sentence(self) -> str:
        """Which ranker is the default, and why."""
        own, metric = self.ranker, metric_label(self.metric)
        text = f"{own} is the default: {metric} {self.values[own]:.3f} in full ranking of {self.rows[own]:,} "
        text += "validation examples"
        if after := self.among([name for name in self.leads if name != own]):
            # All examples of one are among those of the other.
            both = min(self.rows[own], self.rows[after])
            where = "" if self.rows[own] == self.rows[after] else f" on the {both:,} that both ranked"
            text += f", {self.leads[own] - self.leads[after]:+.3f} over {after}, the next{where}"
        told = [text, *(f"{name} cannot be the default: {why}" for name, why in self.unranked.items())]
        told += [f"for {_ITEMS[kind]}, {best._lead}" for kind, best in self.by_repeat.items()]
        if new := self.by_repeat.get(NEW_TO_USER):
            told[-1] += f": {new.ranker} answers where the items that a user has are excluded"
        return "; ".join(told)

    @property
    def _lead(self) -> str:
        """The best ranker and its value."""
        return f"{self.ranker} is best ({self.values[self.ranker]:.3f} on {self.rows[self.ranker]:,} examples)"


def choose(values: dict[str, Floats], unranked: dict[str, str] | None = None) -> Best:
    """Return the best ranker by its values [B]; NaN marks an example that a slow ranker did not score.

    The best of the rankers with all examples is compared with each other one on the examples that both scored. The
    first of equal rankers is taken.

    Args:
        values: ranker → metric of each example. All slow rankers scored the same examples.
        unranked: ranker → why it is not in `values`.
    """
    rows = {name: int(np.isfinite(column).sum()) for name, column in values.items()}
    most = max(rows.values())
    means = {name: float(column.mean()) for name, column in values.items() if rows[name] == most}
    first = max(means, key=means.__getitem__)
    leads = {first: 0.0} | {name: float(np.nanmean(column - values[first])) for name, column in values.items()}
    return Best(
        ranker=max(leads, key=leads.__getitem__),
        metric=METRIC,
        values={name: float(np.nanmean(column)) for name, column in values.items()},
        rows=rows,
        leads=leads,
        unranked=unranked or {},
    )
