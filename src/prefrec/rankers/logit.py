"""Conditional logit: weights of features by maximum likelihood of a softmax over each example's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
"""[B, C, F]; a candidate whose features are not all finite is ignored."""


@dataclass(frozen=True)
class Logit:
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
        real = _real(features)
        per_unit = self.weights / self.scale
        utility = np.where(real[..., None], features, 0.0).astype(np.float32) @ per_unit.astype(np.float32)
        return np.where(real, utility.astype(np.float64) - self.mean @ per_unit, -np.inf)


def fit_logit(
    features: Features,
    targets: NDArray[np.integer],
    names: Sequence[str],
    *,
    ridge: float = 1.0,
    start: NDArray[np.float64] | None = None,
) -> Logit:
    """Return the weights that maximise Σ_b log softmax(utility)[b, target] − ridge/2 · Σ weight² (McFadden 1974).

    Features are standardised over all candidates, so that `ridge` penalises all weights alike. An example whose
    target is ignored does not count.

    Args:
        features: [B, C, F].
        targets: [B] column of each example's target.
        names: [F] names of the features.
        ridge: L2 penalty on the weights, in units of examples.
        start: [F] initial weights, which save time and change nothing else.

    Raises:
        ValueError: no example has its target among its candidates.
    """
    real = _real(features)
    usable = np.flatnonzero(real[np.arange(len(targets)), targets])
    if not len(usable):
        raise ValueError("no example has its target among its candidates")
    real, targets = real[usable], np.asarray(targets)[usable]
    x = np.where(real[..., None], features[usable], np.float32(0))
    count = real.sum()
    mean = x.sum(axis=(0, 1), dtype=np.float64) / count
    variance = np.square(x).sum(axis=(0, 1), dtype=np.float64) / count - mean**2
    constant = variance <= 1e-12  # a constant feature keeps weight 0
    scale = np.sqrt(np.where(constant, 1.0, variance))
    x = np.where(constant, np.float32(0), (x - mean.astype(np.float32)) / scale.astype(np.float32))
    gained = x[np.arange(len(targets)), targets].astype(np.float64).sum(axis=0)

    def probabilities(w: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        utility = np.where(real, x @ w.astype(np.float32), -np.inf).astype(np.float64)
        highest = utility.max(axis=1, keepdims=True)
        exp = np.exp(utility - highest)
        total = exp.sum(axis=1, keepdims=True)
        return exp / total, float((np.log(total) + highest).sum())

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p, normaliser = probabilities(w)
        expected = np.einsum("bc,bcf->f", p.astype(np.float32), x).astype(np.float64)
        return normaliser - w @ gained + ridge / 2 * (w @ w), expected - gained + ridge * w

    from scipy.optimize import minimize  # here, because it is slow to import

    weights = minimize(loss, np.zeros(x.shape[2]) if start is None else start, jac=True, method="L-BFGS-B").x
    p = probabilities(weights)[0].astype(np.float32)
    hessian = ridge * np.eye(len(weights))
    for row, share in zip(x, p, strict=True):
        centred = row - share @ row
        hessian += (centred * share[:, None]).T @ centred
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return Logit(tuple(names), mean, scale, weights, errors, len(targets))


def _real(features: Features) -> NDArray[np.bool_]:
    """Return the mask [B, C] of candidates that count."""
    return np.asarray(np.isfinite(features).all(axis=2))
