"""The wild bootstrap: against a loop over rows, on the null with few effective targets, and its symmetries."""

import math

import numpy as np
import pytest

from prefrec.evaluation.intervals import paired_difference
from prefrec_lab.wild import all_signs, equivalence, wild_test


def _slow_variance(values: np.ndarray, users: np.ndarray, targets: np.ndarray) -> float:
    """The two-way jackknife variance from means without one cluster after another."""
    found = []
    for clusters in (users, targets, 1000 * users + targets):
        names = np.unique(clusters)
        left = np.array([values[clusters != name].mean() for name in names]) - values.mean()
        found.append((len(names) - 1) / len(names) * (left**2).sum())
    of_users, of_targets, of_pairs = found
    return max(of_users, of_targets, of_users + of_targets - of_pairs)


def _slow_test(values: np.ndarray, users: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The statistic and its two-sided p-value over all signs of the targets."""
    found = values.mean() / math.sqrt(_slow_variance(values, users, targets))
    drawn = []
    for signs in all_signs(int(targets.max()) + 1):
        changed = values * signs[targets]
        drawn.append(changed.mean() / math.sqrt(_slow_variance(changed, users, targets)))
    more = sum(abs(t) >= abs(found) * (1 - 1e-9) for t in drawn)
    return found, more / len(drawn)


@pytest.mark.parametrize("one_row_a_user", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_signs_give_what_a_loop_over_rows_gives(one_row_a_user, seed):
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(6), rng.integers(0, 6, 34)])
    users = np.arange(40) if one_row_a_user else np.concatenate([np.arange(9), rng.integers(0, 9, 31)])
    values = rng.normal(size=40) + 0.5 * rng.normal(size=6)[targets] + 0.3
    statistic, p = _slow_test(values, users, targets)
    found = wild_test(values, users, targets)
    assert found.mean / found.error == pytest.approx(statistic)
    assert found.p_value == pytest.approx(p)


def test_the_standard_error_is_that_of_the_interval():
    rng = np.random.default_rng(0)
    users, targets = rng.integers(0, 50, 300), rng.integers(0, 30, 300)
    values = rng.normal(size=300) + rng.normal(size=30)[targets]
    found, interval = (
        wild_test(values, users, targets, draws=99),
        paired_difference(values, 0 * values, users, targets),
    )
    assert found.mean == pytest.approx(interval.mean)
    ratios = [(interval.high - interval.mean) / found.error, 1.96]
    assert 1 <= ratios[0] / ratios[1] < 1.3  # Student's t with 8 degrees of freedom or more


def _null(rng: np.random.Generator, rows: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No difference on average; fifteen effective targets of forty, which carry the variance."""
    shares = 1 / np.arange(1, 41)
    targets = rng.choice(40, rows, p=shares / shares.sum())
    values = rng.normal(size=40)[targets] + 0.5 * rng.normal(size=rows)
    return values, np.arange(rows), targets


def test_a_null_with_few_effective_targets_is_rejected_as_often_as_the_level_says():
    rng, p, alone = np.random.default_rng(0), [], []
    for _ in range(200):
        values, users, targets = _null(rng)
        p.append(wild_test(values, users, targets, draws=199).p_value)
        alone.append(paired_difference(values, 0 * values, users).p_value)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert np.mean(np.array(alone) < 0.05) > 0.4  # over users alone


def test_seeds_are_a_random_effect():
    """Three seeds whose means differ by more than their rows do: as a fixed effect the mean would be significant."""
    rng = np.random.default_rng(0)
    targets, users = rng.integers(0, 60, 600), np.arange(600)
    rows = 0.05 * rng.normal(size=(3, 600))
    apart = rows + np.array([[-0.02], [0.02], [0.06]])
    assert wild_test(apart.mean(axis=0), users, targets, draws=999).p_value < 0.01
    found = wild_test(apart, users, targets, draws=999)
    assert found.p_value > 0.1
    assert found.error == pytest.approx(np.std([-0.02, 0.02, 0.06], ddof=1) / math.sqrt(3), rel=0.1)
    together = rows + 0.02
    assert wild_test(together, users, targets, draws=999).p_value < 0.02


def test_one_sided_p_values_and_the_sign():
    rng = np.random.default_rng(1)
    targets, users = rng.integers(0, 40, 400), np.arange(400)
    values = rng.normal(size=400) + 0.3
    up, down = (wild_test(sign * values, users, targets, draws=999) for sign in (1, -1))
    assert (up.p_above, up.p_below) == (down.p_below, down.p_above)
    assert up.p_above < 0.01 < 0.99 < up.p_below
    assert up.p_value == down.p_value
    same = wild_test(0 * values, users, targets)
    assert (same.mean, same.p_value) == (0, 1)


def test_equivalence_is_within_a_relative_margin():
    rng = np.random.default_rng(2)
    targets, users = rng.integers(0, 50, 1000), np.arange(1000)
    reference = rng.uniform(0.5, 1.5, 1000)

    def p(shift: float) -> float:
        differences = shift * reference + 0.1 * rng.normal(size=1000)
        return equivalence(differences, reference, users, targets, margin=0.03, draws=999)

    assert p(0.0) < 0.01
    assert p(0.05) > 0.9
    assert p(-0.05) > 0.9


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="at least two of each"):
        wild_test([1.0, 2.0], ["u", "v"], ["a", "a"])
    with pytest.raises(ValueError, match="at least two of each"):
        wild_test([1.0, 2.0], ["u", "u"], ["a", "b"])
    with pytest.raises(ValueError, match=r"\(1, 2\), 3 users"):
        wild_test([1.0, 2.0], ["u", "u", "u"], ["a", "b"])
    with pytest.raises(ValueError, match="1 of 3 rows have no finite value, the first is row 1"):
        wild_test([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]], ["u", "v", "w"], ["a", "b", "c"])


def test_with_all_signs_the_p_value_of_one_sided_differences_is_exact():
    """Only the signs as they are reach the statistic of five positive targets; all changed, they are its opposite."""
    found = wild_test([1.0, 2.0, 3.0, 4.0, 5.0], list("uvwxy"), list("abcde"))
    assert (found.p_above, found.p_value) == (1 / 32, 2 / 32)
