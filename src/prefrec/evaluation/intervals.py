"""Bootstrap over users: intervals of means, and of differences of two rankers on the same rows.

A user's rows are not independent, so users are resampled and not rows (cluster bootstrap; Cameron, Gelbach and Miller
2008; Davison and Hinkley 1997, section 3.8). The statistic is the mean over rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BeforeValidator, TypeAdapter

RESAMPLES = 2000
"""Default number of resamples."""
Users = Sequence[Any] | NDArray[Any]
# Weights in memory at a time. All at once would be resamples × users numbers: 16 GB for a million users.
_CHUNK = 4_000_000
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be NaN, which is None in JSON."""


class Result:
    """The base of results, all dataclasses, that are kept as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return dict(plain(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the result of a value made by `to_json`; raise ValueError if it is damaged."""
        return TypeAdapter(cls).validate_python(value)


@dataclass(frozen=True)
class Interval(Result):
    """A mean with its interval.

    Attributes:
        mean: over all rows.
        low, high: ends of the interval (percentile bootstrap, 95% by default); NaN with fewer than two users.
        n: number of rows.
        users: number of distinct users.
    """

    mean: Number
    low: Number
    high: Number
    n: int
    users: int

    def __str__(self) -> str:
        ends = "no interval" if math.isnan(self.low) else f"{self.low:.4f}, {self.high:.4f}"
        return f"{self.mean:.4f} [{ends}] n={self.n}"


@dataclass(frozen=True)
class PairedDifference(Interval):
    """The mean of a − b over the same rows, with its interval and a two-sided bootstrap p-value.

    p = 2 · min(P(d* ≤ 0), P(d* ≥ 0)), at most 1, where d* are the resampled differences and each P is
    (1 + count)/(1 + resamples): the level at which the percentile interval begins to exclude 0. NaN with
    fewer than two users.
    """

    p_value: Number = math.nan


def plain(value: Any) -> Any:
    """Return a result, or lists and dicts of results, as plain JSON values; NaN becomes None.

    Of a dataclass these are the fields that its repr shows.
    """
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def bootstrap_means(
    values: ArrayLike, users: Users, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Return the means [R, M] of the columns of `values` [B, M] in R resamples of the users.

    With sums S [U, M] and row counts N [U] per user, a resample is a multinomial weight w [U] (U draws with
    replacement), and its means are w·S / w·N. All columns share the resamples, so a difference of two columns of the
    result is a paired difference.
    """
    v = np.asarray(values, dtype=np.float64)
    if not len(users):
        raise ValueError("an interval needs at least one row, got none")
    if v.ndim != 2 or len(v) != len(users):
        raise ValueError(f"expected values [B, M] and users [B], got {v.shape} and {len(users)} users")
    # Users are numbered in order of first appearance, which fixes which weight is whose for a given seed.
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(u, len(numbers)) for u in users])
    n_users = len(numbers)
    sums = np.zeros((n_users, v.shape[1]))
    np.add.at(sums, codes, v)
    counts = np.bincount(codes)
    rng = np.random.default_rng(seed)
    chance = np.full(n_users, 1.0 / n_users)
    step = max(1, _CHUNK // n_users)
    means = []
    for start in range(0, resamples, step):
        weights = rng.multinomial(n_users, chance, size=min(step, resamples - start)).astype(np.float64)
        means.append((weights @ sums) / (weights @ counts)[:, None])
    return np.concatenate(means)


def interval_of(mean: float, draws: NDArray[np.float64], n: int, users: int, level: float = 0.95) -> Interval:
    """Return the percentile interval of `draws` [R] around `mean`, widened to contain the mean."""
    if users < 2:
        return Interval(mean, math.nan, math.nan, n, users)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, users)


def difference_of(mean: float, draws: NDArray[np.float64], n: int, users: int) -> PairedDifference:
    """Return the paired difference with resampled values `draws` [R]."""
    # The ones keep p above 0: R resamples cannot show a smaller p than 1/(R + 1).
    tails = [(1 + int(side.sum())) / (1 + len(draws)) for side in (draws <= 0, draws >= 0)]
    p = math.nan if users < 2 else min(1.0, 2 * min(tails))
    return PairedDifference(**vars(interval_of(mean, draws, n, users)), p_value=p)


class Bootstrap:
    """Intervals of several columns over the same rows, all from one set of resamples.

    `values` are key of a column → values [B], `users` those of the rows [B].
    """

    def __init__(self, values: Mapping[Any, NDArray[np.float64]], users: Users, resamples: int, seed: int) -> None:
        draws = bootstrap_means(np.stack(list(values.values()), axis=1), users, resamples, seed)
        self.values, self.draws = values, dict(zip(values, draws.T, strict=True))
        self.size = (len(users), len(set(users)))

    def mean(self, key: Any) -> Interval:
        """Return the mean of a column."""
        return interval_of(float(self.values[key].mean()), self.draws[key], *self.size)

    def difference(self, key: Any, against: Any) -> PairedDifference:
        """Return the mean of one column minus another."""
        gap = self.values[key] - self.values[against]
        return difference_of(float(gap.mean()), self.draws[key] - self.draws[against], *self.size)

    def table(self) -> dict[str, dict[str, Interval]]:
        """Return name → metric → interval, if the keys are pairs (name, metric)."""
        table: dict[str, dict[str, Interval]] = {}
        for name, metric in self.values:
            table.setdefault(name, {})[metric] = self.mean((name, metric))
        return table


def mean_interval(values: ArrayLike, users: Users, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of `values` [B] with its interval by bootstrap over `users` [B]."""
    return Bootstrap({"": np.asarray(values, dtype=np.float64)}, users, resamples, seed).mean("")


def paired_difference(
    values_a: ArrayLike, values_b: ArrayLike, users: Users, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Return the mean of a − b [B] over the same rows with its interval by bootstrap over `users` [B]."""
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows, got {a.shape} and {b.shape}")
    bootstrap = Bootstrap({"": a - b}, users, resamples, seed)
    return difference_of(float((a - b).mean()), bootstrap.draws[""], *bootstrap.size)
