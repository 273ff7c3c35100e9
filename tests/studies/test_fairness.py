"""Popularity, coverage and Gini against slow twins; groups by activity; the whole study."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import RankingExample
from prefrec.evaluation.predictions import prediction_frame
from prefrec.studies.carry_out import carry_out
from prefrec.studies.fairness import (
    FAIRNESS,
    TAKEN,
    activity_groups,
    exposure_frame,
    gini,
    group_table,
    popularity_values,
    recommended,
)


def _frame(seed=0, rows=12):
    rng = np.random.default_rng(seed)
    items = [f"i{i}" for i in range(9)]
    examples = []
    for r in range(rows):
        candidates = tuple(np.random.default_rng(r).permutation(items)[:6].tolist())
        examples.append(RankingExample(f"u{r // 2}", (), candidates, candidates[r % 6]))
    return prediction_frame("x", examples, rng.integers(0, 4, (rows, 6)).astype(float), rng.integers(1, 7, rows))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(values):
    slow = np.mean([abs(a - b) for a in values for b in values]) / (2 * np.mean(values))
    assert gini(np.array(values)) == pytest.approx(slow)


def test_recommended_items_have_the_highest_scores():
    frame = _frame()
    for row, top in zip(frame.iter_rows(named=True), recommended(frame, 5), strict=True):
        of = dict(zip(row["candidates"], row["scores"], strict=True))
        assert len(set(top)) == 5
        rest = [of[i] for i in of if i not in top]
        assert [of[i] for i in top] == sorted((of[i] for i in top), reverse=True)
        assert min(of[i] for i in top) >= max(rest)


def test_popularity_of_the_first_items_and_of_the_targets():
    frames = [_frame(), _frame(1)]
    counts = {f"i{i}": i * i for i in range(8)}  # i8 was never taken
    values = popularity_values({"x": frames}, counts)
    for s, frame in enumerate(frames):
        for b, (top, target) in enumerate(zip(recommended(frame, 5), frame["target"], strict=True)):
            assert values["x"]["top 1"][s, b] == counts.get(top[0], 0)
            assert values["x"]["top 5"][s, b] == pytest.approx(sum(counts.get(i, 0) for i in top) / 5)
            assert values[TAKEN]["top 5"][s, b] == values[TAKEN]["top 1"][s, b] == counts.get(target, 0)


def test_coverage_is_a_share_of_what_the_lists_hold():
    frame = _frame()
    listed = {i for c in frame["candidates"] for i in c}
    times = Counter(top[0] for top in recommended(frame, 1))
    (row,) = exposure_frame({"x": [frame]}).to_dicts()
    assert row["coverage at 1"] == pytest.approx(len(times) / len(listed))
    assert row["Gini at 1"] == pytest.approx(gini(np.array([times[i] for i in listed])))
    assert row["coverage at 1"] <= row["coverage at 5"] <= 1


class _Log:
    """Prepared data as far as groups read it: user k has k interactions, u0 none."""

    train_interactions = pl.DataFrame({"user_id": [f"u{k}" for k in range(6) for _ in range(k)]})


def test_users_fall_into_thirds_by_activity():
    users = [f"u{k}" for k in (5, 0, 1, 2, 3, 4, 0)]
    assert activity_groups(users, _Log()) == ["many", "few", "few", "middle", "middle", "many", "few"]


def test_groups_are_measured_apart():
    users = [f"u{k}" for k in (0, 1, 2, 3, 4, 5)]
    hits = np.array([[1.0, 0, 1, 1, 0, 1]])
    table = group_table({"a": {"hr@1": hits}, "b": {"hr@1": 1 - hits}}, users, _Log(), "a")
    got = {(r["group"], r["variant"]): (r["mean"], r["n"], r["difference"]) for r in table.frame.to_dicts()}
    assert got["few", "a"] == (0.5, 2, None)
    assert got["middle", "a"] == (1, 2, None)
    assert got["middle", "b"] == (0, 2, -1)
    assert table.grid.columns == [c for g in ("few", "middle", "many") for c in (f"{g}, n = 2", "− a’s")]


def test_the_whole_study(base, place):
    summary = carry_out(FAIRNESS, base, [0], place)
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    rankers = ["popularity", "zero-shot", "sft", "dpo", "s-dpo"]
    assert table["variant"].unique(maintain_order=True).to_list() == [*rankers, TAKEN]
    first = {r["variant"]: r["mean"] for r in table.filter(quantity="top 1").iter_rows(named=True)}
    assert first["popularity"] == max(first.values())
    assert first["popularity"] > first["sft"]
    assert [r["ranker"] for r in summary["tables"]["exposure"]] == rankers
    assert {r["variant"] for r in summary["tables"]["groups"]} == set(rankers)
