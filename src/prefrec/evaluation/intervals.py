"""Means, and differences of two rankers on the same rows, with intervals that generalise to new users and items.

Rows of one user are not independent, and neither are rows with one target. The variance of a mean is therefore
clustered both ways (Cameron, Gelbach and Miller 2011):

    V = V(users) + V(targets) − V(pairs of user and target), but not less than V(users) or V(targets)

Each term is a jackknife variance, V(clusters) = (G − 1)/G · Σ_g d_g², where d_g is the change of the mean without
cluster g. An interval is mean ± t·√V, with ν = 2 / (Σ d⁴ / (Σ d²)² − 1/G) degrees of freedom, at most G − 1
(Satterthwaite, with the observed kurtosis of the clusters). If a few users have most of the rows, intervals are
therefore wide. `prefrec_lab.trials.interval_coverage` simulates how often the intervals cover the truth.

The interval over users and targets answers what would be found with other users and other items of the same kind;
that over users alone, V = V(users), what would be found with more users of these very items. The second is the custom
of the field and much narrower where few targets have most of the rows. Results hold both. Fewer users than
`MIN_USERS` have no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, BeforeValidator, TypeAdapter
from scipy.special import stdtr, stdtrit

from prefrec.equality import ByValue

MIN_USERS = 20
"""Users that an interval, a test or an audit needs. Values of fewer may be equal by chance; p would then be 0."""
Labels = Sequence[Any] | NDArray[Any]
"""The user, or the target, of each row [B]."""
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be NaN, which is None in JSON."""


class Result(ByValue):
    """Base class of results that are kept as JSON. Subclasses are dataclasses."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return dict(plain(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the result that `to_json` turned into `value`; raise ValueError if `value` is damaged."""
        return TypeAdapter(cls).validate_python(value)


@dataclass(frozen=True, eq=False)
class Interval(Result):
    """A mean with its interval.

    Attributes:
        mean: mean over all rows.
        low, high: ends of the interval (95% by default); NaN with fewer than `MIN_USERS` users.
        n: number of rows.
        users: number of distinct users.
        items: number of distinct targets. 0: not known; the interval then holds for new users only.
        user_low, user_high: ends of the interval over users alone; None with fewer than `MIN_USERS` users,
            and in files of an earlier prefrec.
    """

    mean: Number
    low: Number
    high: Number
    n: int
    users: int
    items: int = 0
    user_low: float | None = None
    user_high: float | None = None

    def __str__(self) -> str:
        ends = "no interval" if math.isnan(self.low) else f"{self.low:.4f}, {self.high:.4f}"
        return f"{self.mean:.4f} [{ends}] n={self.n}"


@dataclass(frozen=True, eq=False)
class PairedDifference(Interval):
    """The mean of a − b over the same rows, with its interval and the two-sided p-value of the same t-test.

    The p-value is NaN with fewer than `MIN_USERS` users.
    """

    p_value: Number = math.nan


def within(least: float, value: Interval) -> Interval:
    """Return the interval; raise ValueError if its mean is outside `least` to 1."""
    if not (math.isnan(value.mean) or least - 1e-9 <= value.mean <= 1 + 1e-9):
        raise ValueError(f"{value} is outside the range of a metric, {least:g} to 1")
    return value


Share = Annotated[Interval, AfterValidator(partial(within, 0.0))]
"""The mean of a metric. All metrics are between 0 and 1, so another value in JSON is damage."""


def too_few_users(users: int) -> str:
    """Return the sentence that so few users have no intervals; "" if there are enough of them."""
    if users >= MIN_USERS:
        return ""
    counted = "one user has" if users == 1 else f"{users} users have"
    return f"{counted} no intervals and no tests ({MIN_USERS} users needed)".capitalize()


def plain(value: Any) -> Any:
    """Return a result, or lists and dicts of results, as plain JSON values; NaN becomes None.

    A dataclass gives the fields that its repr shows.
    """
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class Means:
    """Means of several columns over the same rows, and their differences.

    Args:
        values: key of a column → values [B]. A row with NaN does not count in that column.
        users, items: user and target of each row [B]. Without items, intervals hold for new users only.
    """

    def __init__(self, values: Mapping[Any, NDArray[np.float64]], users: Labels, items: Labels | None = None) -> None:
        if not len(users):
            raise ValueError("an interval needs at least one row, got none")
        for v in values.values():
            if v.shape != (len(users),):
                raise ValueError(f"expected values [B] and users [B], got {v.shape} and {len(users)} users")
        if items is not None and len(items) != len(users):
            raise ValueError(f"expected values [B] and items [B], got {len(users)} values and {len(items)} items")
        self.values = values
        self._users, self._items = label_codes(users), None if items is None else label_codes(items)
        self._samples: dict[bytes, _Sample] = {}
        everything = self._sample(np.ones(len(users), dtype=np.bool_))
        self.size, self.items = everything.size[:2], everything.size[2]

    def mean(self, key: Any, level: float = 0.95) -> Interval:
        """Return the mean of a column; its interval is clipped to the range of the column's values."""
        values, sample = self._rows(self.values[key])
        mean, half, of_users, _ = sample.estimate(values, level)
        ends = [mean - half, mean + half, mean - of_users, mean + of_users]
        ends = np.clip(ends, values.min(), values.max()).tolist()
        # The mean of equal values can differ from them by rounding.
        low, user_low = (min(end, mean) for end in ends[::2])
        high, user_high = (max(end, mean) for end in ends[1::2])
        return Interval(mean, low, high, *sample.size, _or_none(user_low), _or_none(user_high))

    def difference(self, key: Any, against: Any, level: float = 0.95) -> PairedDifference:
        """Return the mean of one column minus another, over the rows that both have."""
        values, sample = self._rows(self.values[key] - self.values[against])
        mean, half, of_users, p = sample.estimate(values, level)
        users = _or_none(mean - of_users), _or_none(mean + of_users)
        return PairedDifference(mean, mean - half, mean + half, *sample.size, *users, p)

    def common(self, key: Any, other: Any) -> int:
        """Return the number of rows that have values in both columns."""
        return int((~np.isnan(self.values[key] - self.values[other])).sum())

    def table(self) -> dict[str, dict[str, Interval]]:
        """Return name → metric → interval; keys must be pairs (name, metric)."""
        table: dict[str, dict[str, Interval]] = {}
        for name, metric in self.values:
            table.setdefault(name, {})[metric] = self.mean((name, metric))
        return table

    def _rows(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], _Sample]:
        """Return the values that are not NaN, and their rows."""
        there = ~np.isnan(values)
        return values[there], self._sample(there)

    def _sample(self, rows: NDArray[np.bool_]) -> _Sample:
        key = rows.tobytes()
        if key not in self._samples:
            self._samples[key] = _Sample(self._users[rows], None if self._items is None else self._items[rows])
        return self._samples[key]


class _Sample:
    """Rows with the codes [B] of their users and, if known, of their targets."""

    def __init__(self, users: NDArray[np.int64], items: NDArray[np.int64] | None) -> None:
        clusters = [_Clusters(label_codes(users))]
        self.size = (len(users), len(clusters[0].sizes), 0 if items is None else len(np.unique(items)))
        # A single target says nothing about the variance over targets.
        if items is not None and self.size[2] > 1:
            pairs = users * (1 + items.max()) + items
            clusters += [_Clusters(label_codes(items)), _Clusters(label_codes(pairs))]
        self._clusters = clusters

    def estimate(self, values: NDArray[np.float64], level: float) -> tuple[float, float, float, float]:
        """Return the mean, half of its interval, half of that over users alone, and the p-value of a mean of 0."""
        mean = float(values.mean())
        if self.size[1] < MIN_USERS:
            return mean, math.nan, math.nan, math.nan
        estimates = [c.jackknife(values) for c in self._clusters]
        variance, freedom = _two_way(estimates)
        error = math.sqrt(variance)
        # Equal clusters differ only by rounding.
        if error <= 1e-12 * max(1.0, abs(mean)):
            return mean, 0.0, 0.0, float(abs(mean) <= 1e-12)
        half, of_users = (half_length(*estimate, level) for estimate in ((variance, freedom), estimates[0]))
        return mean, half, of_users, 2 * float(stdtr(freedom, -abs(mean) / error))


class _Clusters:
    """Clusters of rows, from the codes [B] of their clusters."""

    def __init__(self, codes: NDArray[np.int64]) -> None:
        self.codes, self.sizes = codes, np.bincount(codes)

    def jackknife(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """Return the jackknife variance of the mean, and its degrees of freedom."""
        surplus = np.bincount(self.codes, weights=values - values.mean())
        return jackknife(surplus / (len(values) - self.sizes))


def jackknife(changes: NDArray[np.float64]) -> tuple[float, float]:
    """Return variance and degrees of freedom of a statistic, from its changes [G] without each cluster."""
    count, squares = len(changes), changes**2
    total = float(squares.sum())
    excess = float((squares**2).sum()) / total**2 - 1 / count if total else 0.0
    freedom = min(count - 1.0, 2 / excess) if excess > 0 else count - 1.0
    return (count - 1) / count * total, freedom


def half_length(variance: float, freedom: float, level: float = 0.95) -> float:
    """Return half the length of the interval of a statistic with this variance and degrees of freedom."""
    return math.sqrt(variance) * float(stdtrit(freedom, (1 + level) / 2))


def _two_way(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Combine variances and degrees of freedom over users, and if given over targets and pairs of both."""
    if len(estimates) == 1:
        return estimates[0]
    (users, of_users), (items, of_items), (pairs, _) = estimates
    return max(users, items, users + items - pairs), min(of_users, of_items)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def label_codes(labels: Labels) -> NDArray[np.int64]:
    """Return numbers [B] of labels, from 0 in their order."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def mean_interval(values: ArrayLike, users: Labels, items: Labels | None = None) -> Interval:
    """Return the mean of `values` [B] with its interval over `users` [B], and over `items` [B] if given."""
    return Means({"": np.asarray(values, dtype=np.float64)}, users, items).mean("")


def paired_difference(
    values_a: ArrayLike, values_b: ArrayLike, users: Labels, items: Labels | None = None
) -> PairedDifference:
    """Return the mean of a − b [B] over the same rows with its interval over `users` and, if given, `items` [B]."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (values_a, values_b))
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows, got {a.shape} and {b.shape}")
    return Means({"a": a, "b": b}, users, items).difference("a", "b")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons (Holm 1979), in the order given; NaN counts as 1."""
    known = np.nan_to_num(p_values, nan=1.0)
    order = np.argsort(known)
    steps = np.minimum(1.0, known[order] * np.arange(len(known), 0, -1))
    corrected = np.empty(len(known))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()
