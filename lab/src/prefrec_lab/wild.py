"""Tests of a mean difference by a restricted wild cluster bootstrap over targets.

Where a few targets have most of the rows, the degrees of freedom of Student's t are a guess. The bootstrap draws
the distribution of the statistic under a mean of 0 instead (Cameron, Gelbach and Miller 2008): the values of all
rows with the same target keep or change their sign together. The statistic is the mean over its standard error,
which is that of the intervals (`prefrec.evaluation.intervals`), a two-way jackknife over users and targets, also in
each draw (MacKinnon, Nielsen and Webb 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from prefrec.evaluation.intervals import Labels, label_codes
from prefrec.evaluation.metrics import Floats

DRAWS = 9_999
"""Number of draws of signs. With so few targets that all signs are fewer, each of them is drawn once."""
_BLOCK = 200


@dataclass(frozen=True)
class WildTest:
    """The result of a test.

    Attributes:
        mean: of the values.
        error: its standard error, seeds included.
        p_value: two-sided, of a mean of 0.
        p_above, p_below: one-sided, of a mean of at most 0, and of at least 0.
    """

    mean: float
    error: float
    p_value: float
    p_above: float
    p_below: float


def wild_test(
    values: Sequence[ArrayLike] | NDArray[np.float64],
    users: Labels,
    targets: Labels,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> WildTest:
    """Test whether the mean of differences is 0, for other users, other targets and other seeds.

    The value of a row is its mean over the seeds. Seeds are a random effect: the variance of the mean over K seeds,
    s²/K with s² between the means of the seeds, is added to the squared standard error. In a draw, the seeds' part of
    the mean is normal, and s² varies like χ² with K − 1 degrees of freedom. With one seed, nothing is added.

    Args:
        values: [K, B] difference of each row with each seed, or [B] with one seed.
        users: [B] user of each row.
        targets: [B] target of each row.
        draws: number of draws.
        seed: of the draws.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or there are fewer than two users or targets.
    """
    by_seed = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if by_seed.shape[1] != len(users) or len(users) != len(targets):
        raise ValueError(
            f"expected values [K, B], got {by_seed.shape}, {len(users)} users and {len(targets)} targets"
        )
    # A comparison with NaN is False, so a missing value would make each p-value the smallest.
    missing = np.flatnonzero(~np.isfinite(by_seed).all(axis=0))
    if len(missing):
        raise ValueError(f"{len(missing)} of {len(users)} rows have no finite value, the first is row {missing[0]}")
    sums = _Sums(by_seed.mean(axis=0), label_codes(users), label_codes(targets))
    count, rng = len(by_seed), np.random.default_rng(seed)
    of_seeds = float(by_seed.mean(axis=1).var(ddof=1)) / count if count > 1 else 0.0
    mean, variance = (float(x[0]) for x in sums.estimates(np.ones((1, sums.targets))))
    error = math.sqrt(variance + of_seeds)
    if error <= 1e-12 * max(1.0, abs(mean)):
        is_zero = float(abs(mean) <= 1e-12)
        return WildTest(mean, 0.0, is_zero, float(mean <= 1e-12), float(mean >= -1e-12))
    signs = all_signs(sums.targets) if 2**sums.targets <= draws else None
    drawn = []
    for begin in range(0, draws if signs is None else len(signs), _BLOCK):
        size = min(_BLOCK, draws - begin)
        random = rng.choice([-1.0, 1.0], (size, sums.targets)) if signs is None else signs[begin : begin + _BLOCK]
        means, variances = sums.estimates(random)
        if count > 1:
            means = means + math.sqrt(of_seeds) * rng.normal(size=len(means))
            variances = variances + of_seeds * rng.chisquare(count - 1, len(means)) / (count - 1)
        drawn.append(means / np.sqrt(np.maximum(variances, 1e-300)))
    # All signs include those that change nothing. Among random ones, the draw that was found counts as one more.
    found_again = 0 if signs is not None and count == 1 else 1
    return WildTest(mean, error, *_shares(np.concatenate(drawn), mean / error, found_again))


def equivalence(
    differences: Sequence[ArrayLike] | NDArray[np.float64],
    reference: Sequence[ArrayLike] | NDArray[np.float64],
    users: Labels,
    targets: Labels,
    *,
    margin: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Return the p-value of two one-sided tests: that a mean difference is `margin` × the reference's mean or more.

    The margin is relative, so the reference's own values enter each row: the tests are of the mean of difference +
    margin × reference, which is above 0, and of difference − margin × reference, which is below 0. A small p-value
    shows equivalence. Arguments are those of `wild_test`; `reference` [K, B] or [B] are the values compared with.
    """
    band = margin * np.atleast_2d(np.asarray(reference, dtype=np.float64))
    found = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    low, high = (wild_test(found + sign * band, users, targets, draws=draws, seed=seed) for sign in (1, -1))
    return max(low.p_above, high.p_below)


def _shares(drawn: Floats, found: float, found_again: int) -> tuple[float, float, float]:
    """Return the two-sided p-value and both one-sided ones: shares of draws at least as extreme as `found`.

    `found_again` is 1 if `found` is not among the draws, and 0 if it is.
    """
    # The draw without any change of sign equals `found` up to rounding.
    least = abs(found) * (1 - 1e-9)
    slack = 1e-9 * abs(found)
    above = (drawn >= found - slack).sum()
    below = (drawn <= found + slack).sum()
    more = (np.abs(drawn) >= least).sum()
    total = found_again + len(drawn)
    return tuple(float((found_again + n) / total) for n in (more, above, below))  # type: ignore[return-value]


def all_signs(targets: int) -> Floats:
    """Return all vectors of signs [2^targets, targets]."""
    bits = np.arange(2**targets)[:, None] >> np.arange(targets) & 1
    return np.where(bits, -1.0, 1.0)


class _Sums:
    """Sums of values over clusters, from which the estimates of all draws follow without the rows."""

    def __init__(self, values: Floats, users: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        self.rows, self.targets = len(values), int(targets.max(initial=-1)) + 1
        if self.targets < 2 or users.max() < 1:
            raise ValueError("a test over users and targets needs at least two of each")
        pairs, of_pairs = np.unique(users * self.targets + targets, return_inverse=True)
        self._of_targets = _Cluster(values, targets, np.arange(self.targets))
        self._of_pairs = _Cluster(values, of_pairs, pairs % self.targets)
        # Users cross targets, so that the signs do not factor out of their sums.
        of_users = np.bincount(users).astype(np.float64)
        self._users = sparse.csr_array(
            (self._of_pairs.sums, (pairs // self.targets, pairs % self.targets)), shape=(len(of_users), self.targets)
        )
        self._user_sizes, self._repeats = of_users, bool((of_users > 1).any())

    def estimates(self, signs: Floats) -> tuple[Floats, Floats]:
        """Return mean [R] and its two-way jackknife variance [R] for each draw of signs [R, targets]."""
        means = signs @ self._of_targets.sums / self.rows
        items = self._of_targets.variance(signs, means, self.rows)
        if not self._repeats:  # each user is a pair of user and target
            return means, np.maximum(items, self._of_pairs.variance(signs, means, self.rows))
        surplus = (self._users @ signs.T).T - self._user_sizes * means[:, None]
        count, weights = len(self._user_sizes), 1 / (self.rows - self._user_sizes)
        users = (count - 1) / count * np.square(surplus * weights).sum(axis=1)
        both = users + items - self._of_pairs.variance(signs, means, self.rows)
        return means, np.maximum(np.maximum(users, items), both)


class _Cluster:
    """Clusters that lie within one target each: a sign changes all of their sum."""

    def __init__(self, values: Floats, codes: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        self.sums = np.bincount(codes, weights=values)
        self.sizes, self.targets = np.bincount(codes).astype(np.float64), targets

    def variance(self, signs: Floats, means: Floats, rows: int) -> Floats:
        """Return the jackknife variance [R] over these clusters: Σ (sign × sum − size × mean)² / (rows − size)²."""
        weights, width = 1 / np.square(rows - self.sizes), signs.shape[1]
        # Only the cross term depends on the signs.
        cross = np.bincount(self.targets, weights=weights * self.sums * self.sizes, minlength=width)
        squares, sizes = (weights * self.sums**2).sum(), (weights * self.sizes**2).sum()
        count = len(self.sizes)
        return (count - 1) / count * (squares - 2 * means * (signs @ cross) + means**2 * sizes)
