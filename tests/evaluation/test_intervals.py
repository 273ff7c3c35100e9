"""Intervals: against leaving clusters out one by one, against simulations, and their symmetries."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prefrec.evaluation import intervals
from prefrec.evaluation.intervals import MIN_USERS, Interval, Means, holm, mean_interval, paired_difference, within
from prefrec_lab.trials import interval_coverage as simulations

# As many users as an interval needs, and some of them have more rows.
SHARES = st.integers(0, 1000).map(lambda n: n / 1000)
ROWS = st.lists(st.tuples(st.integers(0, 6), SHARES, SHARES), min_size=20, max_size=40).map(
    lambda rows: [(n if n < MIN_USERS else user, a, b) for n, (user, a, b) in enumerate(rows)]
)


def _slow_jackknife(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Variance and degrees of freedom from means without one cluster after another."""
    names = list(dict.fromkeys(clusters.tolist()))
    left = np.array([values[clusters != name].mean() for name in names]) - values.mean()
    count = len(names)
    kurtosis = count * (left**4).sum() / (left**2).sum() ** 2
    freedom = min(count - 1, 2 * count / (kurtosis - 1) if kurtosis > 1 else np.inf)
    return (count - 1) / count * (left**2).sum(), freedom


def _drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, users and items of 60 rows, whose items matter."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, 60), np.minimum(rng.geometric(0.3, 60), 9)
    return rng.random(60) + 0.3 * users / 30 + rng.normal(size=10)[items], users, items


def test_over_users_the_variance_is_the_jackknifes():
    values, users, _ = _drawn(0)
    variance, freedom = _slow_jackknife(values, users)
    found = mean_interval(values, users)
    mean, half = values.mean(), stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert found.items == 0


@pytest.mark.parametrize(("seed", "swapped"), [(0, False), (3, False), (8, False), (0, True)])
def test_over_users_and_items_the_variance_is_that_of_both_without_their_pairs(monkeypatch, seed, swapped):
    """That of items, of both, or (swapped) of users is the largest."""
    monkeypatch.setattr(intervals, "MIN_USERS", 2)  # the nine items are users if swapped
    values, *labels = _drawn(seed)
    users, items = labels[::-1] if swapped else labels
    parts = [_slow_jackknife(values, codes) for codes in (users, items, 100 * users + items)]
    (of_users, free), (of_items, free_items), (of_pairs, _) = parts
    variance = max(of_users, of_items, of_users + of_items - of_pairs)
    found = paired_difference(values, np.zeros(60), users, items)
    error, freedom = math.sqrt(variance), min(free, free_items)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.mean) / error, freedom))
    assert (found.n, found.users, found.items) == (60, len(set(users)), len(set(items)))


def test_a_few_items_with_most_rows_make_it_wide():
    rng = np.random.default_rng(1)
    items = np.minimum(rng.geometric(0.3, 300), 9)
    values = np.clip(rng.normal(size=300) / 9 + rng.random(10)[items], 0, 1)
    alone, both = mean_interval(values, np.arange(300)), mean_interval(values, np.arange(300), items)
    assert both.high - both.low > 3 * (alone.high - alone.low)
    one = mean_interval(values, np.arange(300), ["one"] * 300)  # says nothing of other targets
    assert (one.low, one.high) == (alone.low, alone.high)
    two = mean_interval(values, np.arange(300), items > 2)
    assert two.high - two.low > 3 * (alone.high - alone.low)


@given(rows=ROWS)
def test_an_interval_holds_its_mean_and_the_range_holds_the_interval(rows):
    users, values, _ = zip(*rows, strict=True)
    interval = mean_interval(values, users)
    assert (interval.n, interval.users) == (len(rows), len(set(users)))
    assert interval.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= interval.low <= interval.mean <= interval.high <= max(values) + 1e-9


@given(rows=ROWS)
def test_a_difference_is_antisymmetric(rows):
    users, a, b = zip(*rows, strict=True)
    there, back = paired_difference(a, b, users), paired_difference(b, a, users)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    assert 0 <= there.p_value <= 1
    assert (there.p_value < 0.05) == (there.low > 0 or there.high < 0)


def test_many_rows_of_one_user_are_not_many_users():
    own, users = np.random.default_rng(2).random(40), np.repeat(np.arange(40), 50)
    clustered = mean_interval(own[users], users)
    as_if_independent = mean_interval(own[users], np.arange(len(users)))
    assert clustered.high - clustered.low > 4 * (as_if_independent.high - as_if_independent.low)


@pytest.mark.parametrize("name", ["pareto 1.1 rows a user", "63 targets"])
@pytest.mark.parametrize("paired", [False, True])
def test_intervals_cover_the_truth(name, paired):
    """The small version of `prefrec_lab.trials.interval_coverage`."""
    covered, _ = simulations.coverage(simulations.DESIGNS[name], 250, paired=paired, truth_draws=250)
    assert covered >= 0.915  # 2.5 standard errors below 0.95


def test_a_sample_of_a_shop_draws_targets_and_then_their_rows():
    """Values are the rows' numbers, so that each can be traced to its target and its user."""
    targets, users = np.repeat(np.arange(5), [1, 4, 2, 8, 3]), np.arange(18) % 7
    shop = simulations.Shop(np.arange(18.0), users, targets, np.bincount(targets))
    for seed in range(20):
        values, drawn_users, drawn = shop.draw(np.random.default_rng(seed))
        rows = values.astype(int)
        for one in range(5):
            of = targets[rows[drawn == one]]
            assert (of == of[0]).all()
            assert len(of) == shop.sizes[of[0]]
        # A row that is drawn again is of another user, and the rest of a user's rows stay with the user.
        pairs = set(zip(rows.tolist(), drawn_users.tolist(), strict=True))
        assert len(pairs) == len(rows)
        for user in np.unique(drawn_users):
            assert len(set(users[rows[drawn_users == user]])) == 1
    assert shop.effective_targets < 5
    assert {name for name, *_ in simulations.shops_table(2)} >= {"amazon-office: blend − title TF-IDF"}


@pytest.mark.parametrize("items", [True, False])
def test_the_interval_over_users_alone_is_beside_that_over_both(items):
    values, users, targets = _drawn(0)
    alone, zeros = mean_interval(values, users), np.zeros(60)
    both = [mean_interval(values, users, targets if items else None)]
    both.append(paired_difference(values, zeros, users, targets if items else None))
    for found in both:
        assert (found.user_low, found.user_high) == pytest.approx((alone.low, alone.high))
        assert (found.high > found.user_high) is items
    old = {name: value for name, value in both[0].to_json().items() if not name.startswith("user_")}
    assert Interval.from_json(old).user_low is None
    assert mean_interval([0.5, 0.2], ["a", "a"]).user_low is None


def test_p_values_are_uniform_under_no_difference_and_small_under_one():
    rng, users = np.random.default_rng(4), np.arange(80)
    null = [paired_difference(rng.random(80), rng.random(80), users).p_value for t in range(100)]
    assert 0.0 <= np.mean(np.array(null) < 0.05) <= 0.13
    assert 0.3 < np.mean(null) < 0.7
    assert paired_difference(rng.random(80) + 1, rng.random(80), users).p_value < 1e-9


def test_one_user_has_no_interval():
    interval = mean_interval([0.0, 1.0, 1.0], ["a", "a", "a"])
    assert interval.mean == pytest.approx(2 / 3)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert math.isnan(paired_difference([1.0], [0.0], ["a"]).p_value)
    assert str(interval) == "0.6667 [no interval] n=3"
    assert str(Interval(0.25, 0.125, 0.5, 7, 2)) == "0.2500 [0.1250, 0.5000] n=7"


@pytest.mark.parametrize("users", [2, 19, 20])
def test_equal_differences_of_a_few_users_are_no_finding(users):
    """The rows of few users may be equal by chance: p would be 0, with an empty interval."""
    found = paired_difference(np.ones(2 * users), np.zeros(2 * users), np.arange(2 * users) % users)
    mean = mean_interval(np.ones(2 * users), np.arange(2 * users) % users)
    assert (found.mean, mean.mean, found.users) == (1.0, 1.0, users)
    is_tested = users >= MIN_USERS
    for number in (found.p_value, found.low, found.high, mean.low, mean.high):
        assert math.isnan(number) is not is_tested
    assert bool(intervals.too_few_users(users)) is not is_tested


def test_constant_values_give_a_point():
    interval = mean_interval(np.full(30, 0.1), np.arange(30))
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)
    same = paired_difference(np.ones(30), np.ones(30), np.arange(30))
    assert (same.mean, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    for value in (0.1, 1e6 + 0.1):
        other = paired_difference(np.full(30, value), np.zeros(30), np.arange(30))
        assert (other.low, other.high, other.p_value) == (other.mean, other.mean, 0)
    assert intervals.jackknife(np.zeros(5)) == (0, 4)


def test_another_level():
    values, users, items = _drawn(2)
    means = Means({"a": values, "b": np.zeros(60)}, users, items)
    wide, usual = means.difference("a", "b", 1 - 0.05 / 9), means.difference("a", "b")
    assert wide.low < usual.low < usual.high < wide.high
    assert wide.p_value == usual.p_value
    assert means.mean("a", 0.5).low > means.mean("a").low
    half = intervals.half_length
    assert half(2.0, 30.0) == half(2.0, 30.0, 0.95) > half(2.0, 30.0, 0.9)


def test_a_table_of_columns():
    rng = np.random.default_rng(7)
    users, items = np.repeat(np.arange(20), 3), rng.integers(0, 9, 60)
    values = {(name, metric): rng.random(60) for name in ("a", "b") for metric in ("hr@1", "mrr")}
    means = Means(values, users, items)
    table = means.table()
    assert {(name, metric) for name, row in table.items() for metric in row} == set(values)
    for (name, metric), column in values.items():
        assert table[name][metric] == mean_interval(column, users, items)
    found = means.difference(("a", "mrr"), ("b", "mrr"))
    assert found == paired_difference(values["a", "mrr"], values["b", "mrr"], users, items)
    assert (means.size, means.items) == ((60, 20), 9)


def test_rows_with_values_in_both_columns_are_counted():
    columns = {"a": np.array([0.5, 0.5, math.nan, 0.5]), "b": np.array([0.0, math.nan, math.nan, 0.5])}
    means = Means(columns, ["u", "v", "w", "x"])
    assert (means.common("a", "b"), means.common("a", "a"), means.common("b", "a")) == (2, 3, 2)
    assert (means.mean("a").n, means.mean("b").n) == (3, 2)


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_means_outside_the_range_of_metrics_are_refused(least):
    interval = lambda mean: Interval(mean, 0.1, 0.2, 5, 3)  # noqa: E731
    for one in map(interval, (least - 1e-9, least, 1.0, 1 + 1e-9, math.nan)):
        assert within(least, one) is one
    for mean in (least - 5e-9, 1 + 5e-9, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"n=5 is outside the range of a metric, {least:g} to 1$"):
            within(least, interval(mean))


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_steps_down(p):
    """Against its definition: hypotheses in order of p are rejected until the first p > level / (those left)."""
    corrected = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
        for done, i in enumerate(order):
            if p[i] * (len(p) - done) > level:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(corrected) if value <= level} == rejected
    assert holm([math.nan, 0.01]) == [1, 0.02]
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_plain_reaches_into_lists_and_dicts():
    want = {
        "mean": 0.5,
        "low": None,
        "high": None,
        "n": 1,
        "users": 1,
        "items": 0,
        "user_low": None,
        "user_high": None,
    }
    assert intervals.plain({"a": [mean_interval([0.5], ["a"]), math.nan, 2]}) == {"a": [want, None, 2]}


def test_hits_may_be_booleans():
    hits, others, users = [True, False, True], [True, True, False], ["a", "b", "c"]
    assert paired_difference(hits, others, users) == paired_difference([1, 0, 1], [1, 1, 0], users)
    assert mean_interval(hits, users) == mean_interval([1.0, 0.0, 1.0], users)
    rounded = np.random.default_rng(0).random(3, dtype=np.float32)
    assert mean_interval(rounded, users) == mean_interval(rounded.tolist(), users)


def test_json_round_trip():
    interval = mean_interval([0.0, 1.0], ["a", "b"])
    assert Interval.from_json(json.loads(json.dumps(interval.to_json()))) == interval
    difference = paired_difference([0.0, 1.0], [1.0, 1.0], ["a", "b"])
    assert intervals.PairedDifference.from_json(json.loads(json.dumps(difference.to_json()))) == difference
    one = mean_interval([0.5], ["a"]).to_json()
    assert one["low"] is None
    assert math.isnan(Interval.from_json(one).low)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        mean_interval([], [])
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1.0], [1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match=r"values \[B\] and users \[B\]"):
        mean_interval(np.zeros((2, 1)), ["a"])
    with pytest.raises(ValueError, match=r"values \[B\] and items \[B\]"):
        mean_interval([0.0, 1.0], ["a", "b"], ["a"])
