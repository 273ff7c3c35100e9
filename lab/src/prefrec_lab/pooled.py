"""What several data sets say together of one difference: a random-effects mean of relative differences.

A difference on one data set is read as a share of the ranker compared with, because the metrics of data sets differ
tenfold. The mean over data sets is that of DerSimonian and Laird (1986), which lets the true difference vary between
them. Its error is that of Hartung and Knapp (2001) with Student's t, and is never taken below the usual one
(Röver, Knapp and Friede 2015), because so few data sets would sometimes look too much alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefrec_lab.findings import Tested
from prefrec_lab.wild import wild_test


@dataclass(frozen=True)
class Effect:
    """A difference on one data set, as a share of the mean of the ranker compared with.

    Attributes:
        name: of the data set.
        mean: the difference over that mean; 0.01 is 1%.
        error: its standard error, over users, targets and seeds.
    """

    name: str
    mean: float
    error: float


@dataclass(frozen=True)
class Pooled:
    """The mean of effects over data sets.

    Attributes:
        mean: of the true effects.
        error: its standard error.
        spread: standard deviation of the true effects between data sets.
        sets: number of data sets.
    """

    mean: float
    error: float
    spread: float
    sets: int

    @property
    def _freedom(self) -> int:
        return self.sets - 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of the mean."""
        half = float(stats.t.ppf((1 + level) / 2, self._freedom)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a mean of 0."""
        return 2 * self._tail(abs(self.mean))

    def equivalence(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (TOST): that the mean is `margin` from 0 or more."""
        return self._tail(margin - abs(self.mean))

    def _tail(self, distance: float) -> float:
        return float(stats.t.sf(distance / self.error, self._freedom))


def relative(tested: Tested) -> Effect:
    """Return the effect of a difference of two rankers.

    The error is that of difference − share × second, whose mean is 0 at the share that was found (delta method). So
    it counts that the mean of `second` is an estimate, too.
    """
    base = float(tested.second.mean())
    share = float((tested.first - tested.second).mean()) / base
    rest = tested.first - (1 + share) * tested.second
    # One draw, because only the standard error is read.
    return Effect(tested.name, share, wild_test(rest, tested.users, tested.items, draws=1).error / base)


def by_data(effects: Sequence[Effect], data_of: Callable[[str], str]) -> list[Effect]:
    """Return an effect for each data set: the mean of those of its splits.

    The splits of a data set have users and items in common, so their errors are taken as equal in sign: the error of
    the mean is the mean of the errors.
    """
    groups: dict[str, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(data_of(effect.name), []).append(effect)
    return [
        Effect(name, float(np.mean([e.mean for e in own])), float(np.mean([e.error for e in own])))
        for name, own in groups.items()
    ]


def pool(effects: Sequence[Effect]) -> Pooled:
    """Return the mean of the effects of independent data sets; raise ValueError for fewer than two."""
    if len(effects) < 2:
        raise ValueError(f"a mean over data sets needs at least two, got {len(effects)}")
    means = np.array([e.mean for e in effects])
    variances = np.array([e.error for e in effects]) ** 2
    weights = 1 / variances
    fixed = (weights * means).sum() / weights.sum()
    excess = (weights * (means - fixed) ** 2).sum() - (len(means) - 1)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    between = max(0.0, float(excess / scale))
    weights = 1 / (variances + between)
    mean = float((weights * means).sum() / weights.sum())
    # Hartung and Knapp's factor; 1 where the data sets agree more than their errors would let them.
    factor = max(1.0, float((weights * (means - mean) ** 2).sum() / (len(means) - 1)))
    return Pooled(mean, math.sqrt(factor / float(weights.sum())), math.sqrt(between), len(means))
