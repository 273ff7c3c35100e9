"""Conditional logit against a slow twin, and against weights that are known."""

import numpy as np
import pytest
from scipy.optimize import minimize

from prefrec.rankers import logit as logits
from prefrec.rankers.logit import Choices, fit_logit

NAMES = ["price", "age"]


def _choices(n: int, weights: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, 6, 2] and targets that are drawn by a conditional logit with these weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6, 2)) * [1.0, 10.0] + [0.0, 50.0]
    noise = rng.gumbel(size=(n, 6))
    return features.astype(np.float32), (features @ weights + noise).argmax(axis=1)


def test_the_weights_are_those_that_made_the_choices():
    features, targets = _choices(4000, [0.8, -0.05])
    logit = fit_logit(features, targets, NAMES)
    per_unit, error = logit.weights / logit.scale, logit.errors / logit.scale
    assert (abs(per_unit - [0.8, -0.05]) < 3 * error).all()
    assert (error < [0.05, 0.005]).all()


@pytest.mark.parametrize("towards", [None, [0.5, -2.0]])
def test_equals_a_slow_twin(towards):
    features, targets = _choices(40, [0.8, -0.05], seed=1)
    features[3, 4:] = np.nan  # a shorter row
    logit = fit_logit(features, targets, NAMES, ridge=2.0, towards=towards)
    goal = np.array(towards or [0.0, 0.0])
    real = features[np.isfinite(features).all(axis=2)].astype(np.float64)
    mean, scale = real.mean(axis=0), real.std(axis=0)

    def loss(w: np.ndarray) -> float:
        total = ((w - goal) @ (w - goal)).item()  # ridge/2 of 2
        for row, target in zip(features, targets, strict=True):
            utility = [((x - mean) / scale) @ w for x in row.astype(np.float64) if np.isfinite(x).all()]
            total -= utility[target] - np.log(np.exp(utility).sum())
        return total

    def hessian(w: np.ndarray) -> np.ndarray:
        total = 2.0 * np.eye(2)
        for row in features:
            candidates = np.stack([(x - mean) / scale for x in row.astype(np.float64) if np.isfinite(x).all()])
            share = np.exp(candidates @ w) / np.exp(candidates @ w).sum()
            for x, p in zip(candidates - share @ candidates, share, strict=True):
                total += p * np.outer(x, x)
        return total

    slow = minimize(loss, np.zeros(2), tol=1e-10)
    np.testing.assert_allclose(logit.weights, slow.x, atol=2e-5)
    # The optimiser's own `hess_inv` depends on its path, and so on the kernels of the CPU.
    np.testing.assert_allclose(logit.errors, np.sqrt(np.diag(np.linalg.inv(hessian(slow.x)))), rtol=1e-4)
    utility = logit.utility(features)
    assert np.isneginf(utility[3, 4:]).all()
    np.testing.assert_allclose(utility[0, 1], (features[0, 1] - mean) / scale @ logit.weights, atol=1e-4)


def test_a_feature_without_variation_weighs_nothing():
    features, targets = _choices(50, [0.8, 0.0])
    features[..., 1] = 7.0
    logit = fit_logit(features, targets, NAMES)
    assert logit.weights[1] == 0
    assert np.isfinite(logit.utility(features)).all()


@pytest.mark.parametrize("size", [7e-5, 7.0, 7e8])
def test_a_feature_that_only_rounding_varies_weighs_nothing(size):
    features, targets = _choices(50, [0.8, 0.0])
    features[..., 1] = size
    features[::2, :3, 1] = np.nextafter(np.float32(size), np.float32(np.inf))
    assert fit_logit(features, targets, NAMES).weights[1] == 0


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 1e7])
def test_the_unit_of_a_feature_does_not_change_its_weight(scale):
    features, targets = _choices(200, [0.8, -0.05])
    plain = fit_logit(features, targets, NAMES)
    assert (plain.weights != 0).all()
    scaled = fit_logit(features * np.float32(scale), targets, NAMES)
    np.testing.assert_allclose(scaled.weights, plain.weights, rtol=1e-3)


def test_a_feature_far_from_zero_has_its_weight():
    features, targets = _choices(2000, [0.8, 0.0])
    near = fit_logit(features, targets, NAMES)
    features[..., 0] -= 20_000
    far = fit_logit(features, targets, NAMES)
    np.testing.assert_allclose(far.scale, near.scale, rtol=1e-3)
    np.testing.assert_allclose(far.weights, near.weights, rtol=1e-2, atol=1e-3)


def test_a_row_whose_target_is_left_out_teaches_nothing():
    features, targets = _choices(50, [0.8, 0.0])
    features[0, targets[0]] = np.nan
    assert fit_logit(features, targets, NAMES).n == 49
    features[:] = np.nan
    with pytest.raises(ValueError, match="no example has its target"):
        fit_logit(features, targets, NAMES)


@pytest.mark.parametrize("cells", [1, 50, 10_000])
def test_blocks_change_nothing(monkeypatch, cells):
    """One fit of blocks of any size, of one feature, without one fold, equals the fit of what is left."""
    features, targets = _choices(200, [0.8, -0.05])
    features[5, targets[5]] = np.nan
    folds = np.arange(200) % 3
    monkeypatch.setattr(logits, "CELLS", cells)
    choices = Choices.of(features, targets, folds, 3)
    for kept in ([0, 1], [1]):
        found = choices.fit_without_each_fold(choices.fit(kept, ridge=2.0), ridge=2.0)
        for fold, fit in enumerate(found):
            left = (folds != fold) & (np.arange(200) != 5)
            want = fit_logit(features[left][..., kept], targets[left], ["f"] * len(kept), ridge=2.0)
            assert fit.n == want.n
            # The deviation by which a feature is divided is that of all examples, so the penalty differs a little.
            np.testing.assert_allclose(fit.weights / choices.scale[kept], want.weights / want.scale, rtol=2e-3)
            np.testing.assert_allclose(fit.errors / choices.scale[kept], want.errors / want.scale, rtol=2e-3)


def test_without_examples_the_weights_are_those_to_which_they_are_shrunk():
    features, targets = _choices(50, [0.8, -0.05])
    choices = Choices.of(features, targets)
    towards = np.array([0.3, -0.4])
    np.testing.assert_allclose(choices.fit(towards=towards, without=0).weights, towards)
