"""The mean of relative differences over data sets."""

import math

import numpy as np
import pytest
from scipy import stats

from prefrec_lab import findings
from prefrec_lab.pooled import Effect, Pooled, by_data, pool, relative

RNG = np.random.default_rng(0)


def slow(effects):
    """The mean and its error by plain loops: DerSimonian and Laird, then Hartung and Knapp, not narrower."""
    k = len(effects)
    w = [1 / e.error**2 for e in effects]
    fixed = sum(a * e.mean for a, e in zip(w, effects, strict=True)) / sum(w)
    q = sum(a * (e.mean - fixed) ** 2 for a, e in zip(w, effects, strict=True))
    tau2 = max(0.0, (q - (k - 1)) / (sum(w) - sum(a * a for a in w) / sum(w)))
    v = [1 / (e.error**2 + tau2) for e in effects]
    mean = sum(a * e.mean for a, e in zip(v, effects, strict=True)) / sum(v)
    factor = sum(a * (e.mean - mean) ** 2 for a, e in zip(v, effects, strict=True)) / (k - 1)
    return mean, math.sqrt(max(1.0, factor) / sum(v)), math.sqrt(tau2)


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_the_mean_is_that_of_the_slow_twin(spread):
    effects = [Effect(f"{n}", RNG.normal(0.02, spread + 0.01), RNG.uniform(0.005, 0.02)) for n in range(6)]
    found = pool(effects)
    assert (found.mean, found.error, found.spread) == pytest.approx(slow(effects))
    assert found.sets == 6


def test_interval_and_p_values_are_those_of_student():
    found = Pooled(0.02, 0.01, 0.0, 5)
    low, high = found.interval()
    t = stats.t(4)
    assert (low, high) == pytest.approx((0.02 - t.ppf(0.975) * 0.01, 0.02 + t.ppf(0.975) * 0.01))
    assert found.p_value == pytest.approx(2 * t.sf(2))
    assert found.equivalence(0.03) == pytest.approx(t.sf(1))
    # A mean outside of the margin is no sign of equivalence.
    assert found.equivalence(0.01) > 0.5


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng, errors = np.random.default_rng(1), np.array([0.01, 0.02, 0.015, 0.03, 0.02])
    held = 0
    for _ in range(600):
        true = rng.normal(0.05, 0.02, 5)
        found = pool([Effect("", m, e) for m, e in zip(rng.normal(true, errors), errors, strict=True)])
        low, high = found.interval()
        held += low < 0.05 < high
    assert held / 600 > 0.93


def test_a_relative_difference_has_the_share_and_the_error_of_a_bootstrap_over_targets():
    users, codes = [f"u{n}" for n in range(400)], np.arange(400) % 80
    by_target = RNG.normal(0, 0.05, 80)[codes]
    second = np.tile(RNG.uniform(0.1, 0.9, 400), (3, 1))
    first = second * 1.1 + by_target + np.tile(RNG.normal(0, 0.1, 400), (3, 1))
    found = relative(findings.Tested("data", first, second, users, [f"i{n}" for n in codes]))
    assert found.mean == pytest.approx((first - second).mean() / second.mean())
    shares = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(codes == n) for n in RNG.integers(0, 80, 80)])
        shares.append(first[:, rows].mean() / second[:, rows].mean())
    assert found.error == pytest.approx(np.std(shares), rel=0.25)


def test_splits_of_a_data_set_count_as_one_whose_errors_do_not_cancel():
    effects = [Effect("book", 0.1, 0.02), Effect("book-log", 0.3, 0.04), Effect("office", 0.0, 0.01)]
    found = by_data(effects, lambda name: name.removesuffix("-log"))
    assert [e.name for e in found] == ["book", "office"]
    assert (found[0].mean, found[0].error) == pytest.approx((0.2, 0.03))
    assert found[1] == effects[2]


def test_one_data_set_has_no_mean_over_data_sets():
    with pytest.raises(ValueError, match="at least two, got 1"):
        pool([Effect("book", 0.1, 0.02)])
