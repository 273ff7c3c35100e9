"""Bootstrap over users: intervals of means, and of differences of two rankers on the same rows.

A user's rows are not independent, so users are resampled and not rows (cluster bootstrap; Cameron, Gelbach and Miller
2008; Davison and Hinkley 1997, section 3.8). The statistic is the mean over rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Default number of resamples."""

# Weights in memory at a time.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: over all rows.
        low, high: ends of the interval (percentile bootstrap, 95% by default); NaN with fewer than two users.
        n: number of rows.
        users: number of distinct users.
    """

    mean: float
    low: float
    high: float
    n: int
    users: int

    def __str__(self) -> str:
        ends = "no interval" if math.isnan(self.low) else f"{self.low:.4f}, {self.high:.4f}"
        return f"{self.mean:.4f} [{ends}] n={self.n}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the interval of a value made by `to_json`."""
        given: dict[str, Any] = {f.name: math.nan if value[f.name] is None else value[f.name] for f in fields(cls)}
        return cls(**given)


@dataclass(frozen=True)
class PairedDifference(Interval):
    """The mean of a − b over the same rows, with its interval and a two-sided bootstrap p-value.

    p = 2 · min(P(d* ≤ 0), P(d* ≥ 0)), at most 1, where d* are the resampled differences and each P is
    (1 + count)/(1 + resamples): the level at which the percentile interval begins to exclude 0. NaN with
    fewer than two users.
    """

    p_value: float = math.nan


def bootstrap_means(
    values: ArrayLike, users: Sequence[Any] | NDArray[Any], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Return the means [R, M] of the columns of `values` [B, M] in R resamples of the users.

    With sums S [U, M] and row counts N [U] per user, a resample is a multinomial weight w [U] (U draws with
    replacement), and its means are w·S / w·N. All columns share the resamples, so a difference of two columns of the
    result is a paired difference.
    """
    v = np.asarray(values, dtype=np.float64)
    codes, n_users = user_codes(users)
    if v.ndim != 2 or len(v) != len(codes):
        raise ValueError(f"expected values [B, M] and users [B], got {v.shape} and {len(codes)} users")
    sums = np.zeros((n_users, v.shape[1]))
    np.add.at(sums, codes, v)
    counts = np.bincount(codes, minlength=n_users).astype(np.float64)
    rng = np.random.default_rng(seed)
    chance = np.full(n_users, 1.0 / n_users)
    # All weights at once would be resamples × users numbers: 16 GB for a million users.
    step = max(1, _CHUNK // n_users)
    out = np.empty((resamples, v.shape[1]))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = rng.multinomial(n_users, chance, size=size).astype(np.float64)
        out[start : start + size] = (weights @ sums) / (weights @ counts)[:, None]
    return out


def user_codes(users: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return codes [B] of the users, from 0 in order of first appearance, and the number of users."""
    seen: dict[Any, int] = {}
    codes = np.fromiter((seen.setdefault(u, len(seen)) for u in users), dtype=np.int64, count=len(users))
    if not seen:
        raise ValueError("an interval needs at least one row, got none")
    return codes, len(seen)


def interval_of(mean: float, draws: NDArray[np.float64], n: int, users: int, level: float = 0.95) -> Interval:
    """Return the percentile interval of `draws` [R] around `mean`, widened to contain the mean."""
    low, high = _ends(mean, draws, users, level)
    return Interval(mean=mean, low=low, high=high, n=n, users=users)


def difference_of(
    mean: float, draws: NDArray[np.float64], n: int, users: int, level: float = 0.95
) -> PairedDifference:
    """Return the paired difference with resampled values `draws` [R]."""
    low, high = _ends(mean, draws, users, level)
    # The ones keep p above 0: R resamples cannot show a smaller p than 1/(R + 1).
    tails = [(1 + int(side.sum())) / (1 + len(draws)) for side in (draws <= 0, draws >= 0)]
    p = math.nan if users < 2 else min(1.0, 2 * min(tails))
    return PairedDifference(mean=mean, low=low, high=high, n=n, users=users, p_value=p)


def _ends(mean: float, draws: NDArray[np.float64], users: int, level: float) -> tuple[float, float]:
    if users < 2:
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return min(float(low), mean), max(float(high), mean)


def mean_interval(
    values: ArrayLike,
    users: Sequence[Any] | NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of `values` [B] with its interval by bootstrap over `users` [B]."""
    v = np.asarray(values, dtype=np.float64)
    draws = bootstrap_means(v[:, None], users, resamples, seed)[:, 0]
    return interval_of(float(v.mean()), draws, len(v), len(set(users)), level)


def paired_difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    users: Sequence[Any] | NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Return the mean of a − b [B] over the same rows with its interval by bootstrap over `users` [B]."""
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows, got {a.shape} and {b.shape}")
    draws = bootstrap_means((a - b)[:, None], users, resamples, seed)[:, 0]
    return difference_of(float((a - b).mean()), draws, len(a), len(set(users)), level)
