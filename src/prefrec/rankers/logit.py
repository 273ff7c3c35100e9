"""Conditional logit: weights of features by maximum likelihood of a softmax over each row's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Features = NDArray[np.float32]
"""[B, C, F]; features that are not all finite mark an empty place, or an item to leave out."""


@dataclass(frozen=True)
class Logit:
    """Utility of a candidate = Σ weight × (feature − mean) / scale; its probability is a softmax over its row.

    Attributes:
        names: of the features [F].
        mean, scale: of the features over the candidates of the rows that were learnt from [F].
        weights: per standard deviation of the feature [F].
        errors: standard errors of the weights, from the Hessian [F].
        n: rows that were learnt from.
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

    Features are standardised over all candidates, so that `ridge`, in rows, holds all weights alike. A row whose
    target is left out teaches nothing. Raise ValueError if no row has a target among its candidates.

    Args:
        features: [B, C, F].
        targets: column of each row's target [B].
        names: of the features [F].
        start: weights to begin from [F], which saves time and changes nothing else.
    """
    real = _real(features)
    taught = np.flatnonzero(real[np.arange(len(targets)), targets])
    if not len(taught):
        raise ValueError("no row has its target among its candidates")
    real, targets = real[taught], np.asarray(targets)[taught]
    x = np.where(real[..., None], features[taught], np.float32(0))
    count = real.sum()
    mean = x.sum(axis=(0, 1), dtype=np.float64) / count
    variance = np.square(x).sum(axis=(0, 1), dtype=np.float64) / count - mean**2
    constant = variance <= 1e-12  # it tells nothing, and its weight stays 0
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

    found = minimize(loss, np.zeros(x.shape[2]) if start is None else start, jac=True, method="L-BFGS-B").x
    p = probabilities(found)[0].astype(np.float32)
    hessian = ridge * np.eye(len(found))
    for row, share in zip(x, p, strict=True):
        centred = row - share @ row
        hessian += (centred * share[:, None]).T @ centred
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return Logit(tuple(names), mean, scale, found, errors, len(targets))


def _real(features: Features) -> NDArray[np.bool_]:
    """Return which candidates [B, C] are real."""
    return np.asarray(np.isfinite(features).all(axis=2))
