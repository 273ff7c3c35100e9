"""The bootstrap over users: against a loop, against known variance, and its symmetries."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.evaluation.intervals import (
    Bootstrap,
    Interval,
    PairedDifference,
    bootstrap_means,
    difference_of,
    interval_of,
    mean_interval,
    paired_difference,
    plain,
)

ROWS = st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


def test_weights_are_resampled_users():
    """The twin draws users one by one and averages their rows; the distributions agree."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(12), rng.integers(1, 9, size=12))
    values = rng.random(len(users)) + 0.3 * users
    rows_of = [np.flatnonzero(users == u) for u in range(12)]
    slow = [values[np.concatenate([rows_of[u] for u in rng.integers(0, 12, 12)])].mean() for _ in range(6000)]
    fast = bootstrap_means(values[:, None], users, resamples=6000, seed=1)[:, 0]
    assert np.mean(fast) == pytest.approx(np.mean(slow), abs=0.05)
    np.testing.assert_allclose(np.quantile(fast, [0.025, 0.975]), np.quantile(slow, [0.025, 0.975]), atol=0.08)


@settings(deadline=None)
@given(rows=ROWS)
def test_an_interval_holds_its_mean_and_the_range_holds_the_interval(rows):
    users, values, _ = zip(*rows, strict=True)
    interval = mean_interval(values, users, resamples=50)
    assert (interval.n, interval.users) == (len(rows), len(set(users)))
    assert interval.mean == pytest.approx(np.mean(values))
    if interval.users > 1:
        assert min(values) - 1e-9 <= interval.low <= interval.mean <= interval.high <= max(values) + 1e-9


@settings(deadline=None)
@given(rows=ROWS)
def test_a_difference_is_antisymmetric(rows):
    users, a, b = zip(*rows, strict=True)
    there, back = paired_difference(a, b, users, resamples=40), paired_difference(b, a, users, resamples=40)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    if there.users > 1:
        assert there.low == pytest.approx(-back.high, abs=1e-9)
        assert there.p_value == pytest.approx(back.p_value)
        assert 0 < there.p_value <= 1


def test_many_rows_of_one_user_are_not_many_users():
    rng = np.random.default_rng(2)
    own = rng.random(40)
    users = np.repeat(np.arange(40), 50)
    clustered = mean_interval(own[users], users)
    as_if_independent = mean_interval(own[users], np.arange(len(users)))
    assert clustered.high - clustered.low > 4 * (as_if_independent.high - as_if_independent.low)


def test_coverage_is_near_the_level():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(150):
        taste = rng.beta(2, 3, size=60)
        users = np.repeat(np.arange(60), rng.integers(1, 6, size=60))
        hits = rng.random(len(users)) < taste[users]
        interval = mean_interval(hits, users, resamples=300, seed=trial)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.88 <= covered / 150 <= 0.995


def test_p_values_are_uniform_under_no_difference_and_small_under_one():
    rng = np.random.default_rng(4)
    users = np.arange(80)
    null = [
        paired_difference(rng.random(80), rng.random(80), users, resamples=200, seed=t).p_value for t in range(100)
    ]
    assert 0.0 <= np.mean(np.array(null) < 0.05) <= 0.13
    assert 0.3 < np.mean(null) < 0.7
    assert paired_difference(rng.random(80) + 1, rng.random(80), users).p_value == pytest.approx(2 / 2001)


def test_one_user_has_no_interval():
    interval = mean_interval([0.0, 1.0, 1.0], ["a", "a", "a"])
    assert interval.mean == pytest.approx(2 / 3)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert math.isnan(paired_difference([1.0], [0.0], ["a"]).p_value)
    assert str(interval) == "0.6667 [no interval] n=3"
    assert str(Interval(0.25, 0.125, 0.5, 7, 2)) == "0.2500 [0.1250, 0.5000] n=7"


def test_constant_values_give_a_point():
    interval = mean_interval(np.full(30, 0.1), np.arange(30))
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)
    same = paired_difference(np.ones(30), np.ones(30), np.arange(30))
    assert (same.mean, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_seed_and_chunks(monkeypatch):
    values, users = np.random.default_rng(5).random((50, 2)), np.arange(50)
    whole = bootstrap_means(values, users, 100, seed=1)
    assert not np.array_equal(whole, bootstrap_means(values, users, 100, seed=2))
    assert whole.shape == (100, 2)
    for chunk in (1, 70, 150):  # one resample at a time, and three
        monkeypatch.setattr("prefrec.evaluation.intervals._CHUNK", chunk)
        np.testing.assert_allclose(bootstrap_means(values, users, 100, seed=1), whole)
    np.testing.assert_array_equal(bootstrap_means(values, users, 9), bootstrap_means(values, users, 9, seed=0))


def test_ends_are_quantiles_that_hold_the_mean():
    draws = np.random.default_rng(6).random(1000)
    for tail, found in ((0.025, interval_of(0.5, draws, 9, 3)), (0.1, interval_of(0.5, draws, 9, 3, level=0.8))):
        assert (found.mean, found.n, found.users) == (0.5, 9, 3)
        assert [found.low, found.high] == pytest.approx(np.quantile(draws, [tail, 1 - tail]))
    assert interval_of(-1.0, draws, 9, 3).low == -1
    assert interval_of(2.0, draws, 9, 3).high == 2


@pytest.mark.parametrize(
    ("draws", "p"), [([-1, 1, 2, 3], 4 / 5), ([-1, -2, -1, -2], 2 / 5), ([0, 1, 2, 3], 4 / 5), ([-1, -1, 0, 1], 1)]
)
def test_p_is_twice_the_smaller_tail(draws, p):
    difference = difference_of(0.5, np.array(draws, dtype=float), 9, 2)
    assert difference.p_value == pytest.approx(p)
    assert (difference.n, difference.users) == (9, 2)
    assert math.isnan(difference_of(0.5, np.array(draws, dtype=float), 9, 1).p_value)


def test_columns_share_their_resamples():
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(20), 3)
    values = {(name, metric): rng.random(60) for name in ("a", "b") for metric in ("hr@1", "mrr")}
    bootstrap = Bootstrap(values, users, 200, 5)
    table = bootstrap.table()
    assert {(name, metric) for name, row in table.items() for metric in row} == set(values)
    for (name, metric), column in values.items():
        assert table[name][metric].to_json() == pytest.approx(mean_interval(column, users, 200, 5).to_json())
    found = bootstrap.difference(("a", "mrr"), ("b", "mrr"))
    twin = paired_difference(values["a", "mrr"], values["b", "mrr"], users, 200, 5)
    assert found.to_json() == pytest.approx(twin.to_json())
    assert (found.n, found.users) == (60, 20)
    key = ("a", "mrr")
    assert not np.array_equal(bootstrap.draws[key], Bootstrap(values, users, 200, 6).draws[key])


def test_plain_reaches_into_lists_and_dicts():
    one = mean_interval([0.5], ["a"])
    want = {"mean": 0.5, "low": None, "high": None, "n": 1, "users": 1}
    assert plain({"a": [one, math.nan, 2]}) == {"a": [want, None, 2]}


def test_defaults_are_2000_resamples_and_seed_0():
    rng = np.random.default_rng(8)
    a, b, users = rng.random(30), rng.random(30), np.arange(30)
    assert mean_interval(a, users) == mean_interval(a, users, 2000, 0)
    assert paired_difference(a, b, users) == paired_difference(a, b, users, 2000, 0)


def test_hits_may_be_booleans():
    hits, others, users = [True, False, True], [True, True, False], ["a", "b", "c"]
    assert paired_difference(hits, others, users) == paired_difference([1, 0, 1], [1, 1, 0], users)
    assert mean_interval(hits, users) == mean_interval([1.0, 0.0, 1.0], users)


def test_json_round_trip():
    interval = mean_interval([0.0, 1.0], ["a", "b"])
    assert Interval.from_json(json.loads(json.dumps(interval.to_json()))) == interval
    difference = paired_difference([0.0, 1.0], [1.0, 1.0], ["a", "b"])
    assert PairedDifference.from_json(json.loads(json.dumps(difference.to_json()))) == difference
    one = mean_interval([0.5], ["a"]).to_json()
    assert one["low"] is None
    assert math.isnan(Interval.from_json(one).low)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        mean_interval([], [])
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1.0], [1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match=r"values \[B, M\]"):
        bootstrap_means(np.zeros((2, 1)), ["a"])
    with pytest.raises(ValueError, match=r"values \[B, M\]"):
        bootstrap_means([0.5], ["a"])
