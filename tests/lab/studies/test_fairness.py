"""Popularity, coverage and Gini against slow twins; groups by activity; the whole study."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import PreparedData, RankingExample
from prefrec.evaluation.predictions import prediction_frame
from prefrec_lab.studies import fairness


def _frame(seed=0, rows=12):
    rng, items = np.random.default_rng(seed), [f"i{i}" for i in range(9)]
    examples = []
    for r in range(rows):
        candidates = tuple(np.random.default_rng(r).permutation(items)[:6].tolist())
        examples.append(RankingExample(f"u{r // 2}", (), candidates, candidates[r % 6]))
    scores, ranks = rng.integers(0, 4, (rows, 6)).astype(float), rng.integers(1, 7, rows)
    return prediction_frame("x", examples, scores, (ranks, np.zeros(rows, int)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(values):
    slow = np.mean([abs(a - b) for a in values for b in values]) / (2 * np.mean(values))
    assert fairness.gini(np.array(values)) == pytest.approx(slow)


def test_popularity_of_the_first_items_and_of_the_targets():
    frames = [_frame(), _frame(1)]
    counts = {f"i{i}": i * i for i in range(8)}  # i8 was never taken
    values = fairness.popularity_values({"x": frames}, counts)
    for s, frame in enumerate(frames):
        for b, (top, target) in enumerate(zip(fairness.recommended(frame, 5), frame["target"], strict=True)):
            assert values["x"]["top 1"][s, b] == counts.get(top[0], 0)
            assert values["x"]["top 5"][s, b] == pytest.approx(sum(counts.get(i, 0) for i in top) / 5)
            own = [values[fairness.TAKEN][quantity][s, b] for quantity in ("top 1", "top 5")]
            assert own == [counts.get(target, 0)] * 2


def test_coverage_is_a_share_of_what_the_lists_hold():
    frame = _frame()
    listed = {i for c in frame["candidates"] for i in c}
    times = Counter(top[0] for top in fairness.recommended(frame, 1))
    (row,) = fairness.exposure_frame({"x": [frame]}).to_dicts()
    assert row["coverage at 1"] == pytest.approx(len(times) / len(listed))
    assert row["Gini at 1"] == pytest.approx(fairness.gini(np.array([times[i] for i in listed])))
    assert row["coverage at 1"] <= row["coverage at 5"] <= 1


class _Log:
    """Prepared data as far as groups read it: user k has k interactions, u0 none."""

    train_interactions = pl.DataFrame({"user_id": [f"u{k}" for k in range(6) for _ in range(k)]})
    users = None


def test_users_fall_into_thirds_by_activity():
    users = [f"u{k}" for k in (5, 0, 1, 2, 3, 4, 0)]
    assert fairness.activity_groups(users, _Log()) == ["many", "few", "few", "middle", "middle", "many", "few"]


def test_groups_are_measured_apart():
    users, hits = [f"u{k}" for k in (0, 1, 2, 3, 4, 5)], np.array([[1.0, 0, 1, 1, 0, 1]])
    table = fairness.group_table({"a": {"hr@1": hits}, "b": {"hr@1": 1 - hits}}, users, _Log(), "a")
    got = {(r["group"], r["variant"]): (r["mean"], r["n"], r["difference"]) for r in table.frame.to_dicts()}
    assert got["few", "a"] == (0.5, 2, None)
    assert got["middle", "a"] == (1, 2, None)
    assert got["middle", "b"] == (0, 2, -1)
    assert table.grid.columns == [c for g in ("few", "middle", "many") for c in (f"{g}, n = 2", "− a’s")]


@given(st.lists(st.integers(10, 80), min_size=9, max_size=60, unique=True))
def test_numbers_group_users_by_thirds(ages):
    users = [f"u{i}" for i in range(len(ages))] * 2  # two rows a user
    groups, order = fairness.attribute_groups([str(a) for a in ages] * 2, users)
    assert (len(order), groups[: len(ages)]) == (3, groups[len(ages) :])
    for group in order:
        low, high = map(int, group.split(" to "))
        assert {a for a, g in zip(ages, groups, strict=False) if g == group} == {a for a in ages if low <= a <= high}
    sizes = Counter(groups).values()
    assert max(sizes) - min(sizes) <= 2


def test_users_are_measured_by_their_attributes():
    users, hits = [f"u{i}" for i in range(60)], np.array([[float(i % 4 == 0) for i in range(60)]])
    kinds = ["F" if i % 2 else "M" for i in range(60)]
    told = pl.DataFrame({"user_id": users, "gender": kinds, "plan": ["free"] * 60, "note": [None] * 60})
    data = PreparedData(None, [], [], [], _Log.train_interactions, users=told)
    values = {"a": {"hr@1": hits}, "b": {"hr@1": 1 - hits}}
    (table,), alike = fairness.attribute_tables(values, users, data, "a")
    assert alike == ["plan", "note"]
    assert "all rows are of one group: plan, note." in fairness.group_table(values, users, data, "a", alike).note
    assert (table.name, table.title) == ("groups-gender", "HR@1 by gender")
    got = {(r["group"], r["variant"]): (r["mean"], r["n"]) for r in table.frame.to_dicts()}
    assert got == {("F", "a"): (0, 30), ("F", "b"): (1, 30), ("M", "a"): (0.5, 30), ("M", "b"): (0.5, 30)}
    assert fairness.attribute_tables({}, users, replace(data, users=None), "a") == ([], [])
