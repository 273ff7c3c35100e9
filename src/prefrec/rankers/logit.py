"""Conditional logit: weights of features by maximum likelihood of a softmax over each example's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrec.equality import ByValue

Features = NDArray[np.float32]
"""[B, C, F]; a candidate whose features are not all finite is ignored. Sums over candidates are quick where each
feature is contiguous in memory.
"""

MOST_STEPS, CONVERGED = 50, 1e-7
"""Steps of Newton's method, and the expected decrease of the loss at which it ends."""
CONSTANT = 1e-6
"""Largest standard deviation of a constant feature, as a share of its largest absolute value."""


@dataclass(frozen=True, eq=False)
class Logit(ByValue):
    """Utility of a candidate = Σ weight × (feature − mean) / scale; probabilities are a softmax over candidates.

    Attributes:
        names: [F] names of the features.
        mean, scale: [F] mean and standard deviation of the features over the training candidates.
        weights: [F] weight per standard deviation of the feature.
        errors: [F] standard errors of the weights, from the Hessian.
        n: number of training examples.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    errors: NDArray[np.float64]
    n: int

    def utility(self, features: Features) -> NDArray[np.float64]:
        """Return utilities [B, C] of features [B, C, F]; -inf where there is no candidate."""
        return self.utility_of([features[..., number] for number in range(features.shape[2])])

    def utility_of(self, columns: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return utilities [B, C] of the features' columns [B, C]; -inf where there is no candidate.

        A column that is a view of one row, such as the age of each item, is multiplied once.
        """
        per_unit = self.weights / self.scale
        utility = np.zeros(columns[0].shape, dtype=np.float32)
        is_real = np.ones(columns[0].shape, dtype=np.bool_)
        for column, weight in zip(columns, per_unit.astype(np.float32), strict=True):
            column = column if column.strides[0] else column[:1]
            utility += weight * column
            is_real &= np.isfinite(column)
        return np.where(is_real, utility.astype(np.float64) - self.mean @ per_unit, -np.inf)


def utility_by_fold(logits: Sequence[Logit], features: Features, folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return utilities [B, C] of features [B, C, F], each example's by the logit of its fold [B]."""
    out = np.empty(features.shape[:2])
    for number, logit in enumerate(logits):
        out[folds == number] = logit.utility(features[folds == number])
    return out


def fit_logit(
    features: Features,
    targets: NDArray[np.integer],
    names: Sequence[str],
    *,
    ridge: float = 1.0,
    towards: NDArray[np.float64] | None = None,
    start: NDArray[np.float64] | None = None,
) -> Logit:
    """Return the weights that maximise Σ_b log softmax(utility)[b, target] − ridge/2 · |weights − towards|².

    This is a conditional logit (McFadden 1974) whose weights are shrunk, by default to 0. Features are standardised
    over all candidates, so that `ridge` penalises all weights alike. An example whose target is ignored does not
    count.

    Args:
        features: [B, C, F].
        targets: [B] column of each example's target.
        names: [F] names of the features.
        ridge: L2 penalty on the weights, in units of examples.
        towards: [F] weights to which the penalty shrinks. Default: 0.
        start: [F] initial weights, which save time and change nothing else.

    Raises:
        ValueError: no example has its target among its candidates.
    """
    real = _real(features)
    usable = np.flatnonzero(real[np.arange(len(targets)), targets])
    if not len(usable):
        raise ValueError("no example has its target among its candidates")
    real, targets = real[usable], np.asarray(targets)[usable]
    x, mean, scale = _standardised(features[usable], real)
    gained = x[:, np.arange(len(targets)), targets].sum(axis=1, dtype=np.float64)
    flat, empty = x.reshape(len(x), real.size), ~real
    goal = np.zeros(len(x)) if towards is None else np.asarray(towards, dtype=np.float64)

    def probabilities(w: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
        """Return the probabilities [B, C] of the candidates, and the loss."""
        utility = (w.astype(np.float32) @ flat).reshape(real.shape)
        utility[empty] = -np.inf
        highest = utility.max(axis=1, keepdims=True)
        shares = np.subtract(utility, highest, dtype=np.float64)
        np.exp(shares, out=shares)
        total = shares.sum(axis=1, keepdims=True)
        np.divide(shares, total, out=utility, casting="same_kind")
        return utility, float((np.log(total) + highest).sum()) - w @ gained + ridge / 2 * ((w - goal) @ (w - goal))

    weights = np.zeros(len(x)) if start is None else np.asarray(start, dtype=np.float64)
    p, loss = probabilities(weights)
    for _ in range(MOST_STEPS):
        expected, hessian = _moments(x, p, ridge)
        gradient = expected - gained + ridge * (weights - goal)
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < CONVERGED:
            break
        tried, after = probabilities(weights - step)
        while after > loss and step @ step > CONVERGED:  # far from the minimum, a whole step can be too long
            step /= 2
            tried, after = probabilities(weights - step)
        weights, p, loss = weights - step, tried, after
    errors = np.sqrt(np.diag(np.linalg.inv(_moments(x, p, ridge)[1])))
    return Logit(tuple(names), mean, scale, weights, errors, len(targets))


def _moments(
    x: NDArray[np.float32], p: NDArray[np.float32], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the expected features [F] under p [B, C], and the Hessian [F, F] of the loss."""
    expected, hessian = np.zeros(len(x)), ridge * np.eye(len(x))
    for row, share in zip(x.transpose(1, 0, 2), p, strict=True):
        own = row @ share
        expected += own
        centred = row - own[:, None]
        hessian += (centred * share) @ centred.T
    return expected, hessian


def _standardised(
    features: Features, real: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Return the standardised features [F, B, C], and mean [F] and scale [F] of those of real candidates."""
    count, size = real.sum(), features.shape[2]
    x = np.empty((size, *real.shape), np.float32)
    mean = np.zeros(size)
    scale = np.ones(size)
    for number in range(size):
        own = np.where(real, features[..., number], np.float32(0))
        mean[number] = own.sum(dtype=np.float64) / count
        # The squares of a feature far from 0 would cancel, so they are those of its distance from the mean.
        centred = np.where(real, own - np.float32(mean[number]), np.float32(0))
        variance = np.square(centred).sum(dtype=np.float64) / count
        # A constant feature keeps weight 0. Rounding to float32 varies it by a share of its own size.
        is_constant = variance <= (CONSTANT * float(max(own.max(), -own.min()))) ** 2
        scale[number] = 1.0 if is_constant else np.sqrt(variance)
        x[number] = 0 if is_constant else centred / np.float32(scale[number])
    return x, mean, scale


def _real(features: Features) -> NDArray[np.bool_]:
    """Return the mask [B, C] of candidates that count."""
    return np.asarray(np.isfinite(features).all(axis=2))
