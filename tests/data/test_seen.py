"""What was taken before a held-out row's target, against a walk through the log for every row."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_logs import learnt_of, logs, make_log, windows_of
from prefrec.data import Catalogue, PreparedData, RankingExample, Window
from prefrec.data.seen import seen_items, user_histories
from prefrec.data.splits import SPLITS, by_time, by_user, leave_last_out, order
from prefrec.data.store import read_prepared, write_prepared
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare

CUTS: dict[str, Callable[..., Any]] = {
    "leave-last-out": leave_last_out,
    "time": by_time,
    "time, last": lambda *of: by_time(*of, windows="last"),
    "user": by_user,
    "user, all": lambda *of: by_user(*of, windows="all"),
}

NO_ITEMS = pl.DataFrame(schema={"item_id": pl.String, "title": pl.String})


def examples(windows: list[Window]) -> list[RankingExample]:
    return [RankingExample(w.user_id, w.history, (w.target,), w.target) for w in windows]


def slow_seen(ordered: pl.DataFrame, row: RankingExample) -> set[str]:
    """The items of the user's log until the target comes."""
    found = set()
    for user, item in ordered.select("user_id", "item_id").iter_rows():
        if user == row.user_id:
            if item == row.target:
                return found
            found.add(item)
    raise AssertionError(f"{row} is not in the log")


@pytest.mark.parametrize("name", CUTS)
@given(
    log=logs(3, 12), min_history=st.integers(1, 4), length=st.integers(1, 4), seed=st.integers(0, 3), kept=st.data()
)
def test_seen_items_equal_the_slow_twin(name, log, min_history, length, seed, kept):
    sequences = order(log, seed)
    try:
        split = CUTS[name](sequences, min_history)
    except DataError:
        return
    drawn = {part: [row for row in split.rows[part].tolist() if kept.draw(st.booleans())] for part in SPLITS[1:]}
    targets = {part: np.array(rows, dtype=np.int32).reshape(-1, 2) for part, rows in drawn.items()}
    windows = {part: windows_of(sequences, rows, length) for part, rows in targets.items()}
    learn, held = learnt_of(split), sequences.frame.filter(pl.Series(~split.learn))
    validation, test = examples(windows["validation"]), examples(windows["test"])
    data = PreparedData(Catalogue(NO_ITEMS), [], validation, test, learn, {"split": name}, held_out_interactions=held)
    when = {(u, i): t for u, i, t in log.iter_rows()}
    for rows in (validation, test):
        for row, found in zip(rows, seen_items(data, rows), strict=True):
            assert found == slow_seen(sequences.frame, row)
            now, taken = when[row.user_id, row.target], {i: t for (u, i), t in when.items() if u == row.user_id}
            assert {i for i, t in taken.items() if t < now} <= found <= {i for i, t in taken.items() if t <= now}


@pytest.mark.parametrize(
    ("options", "hidden"),
    [({}, False), ({"split": "time"}, True), ({"split": "user", "windows": "all", "max_test_rows": 7}, True)],
)
def test_prepared_data_know_the_past(shop, tmp_path, options, hidden):
    """`hidden`: without held-out interactions some of it would be taken for unseen."""
    paths = shop(users=24, items=80, length=16)
    log = pl.read_csv(paths["interactions"]).with_columns(pl.col("timestamp") + 1_500_000_000)
    log = log.sort("user_id", "timestamp")
    log.write_csv(paths["interactions"])
    config = PrepareConfig(source="files", candidates={"size": 5}, history_length=2, **options, **paths)
    write_prepared(prepare(config), tmp_path / "data")
    data = read_prepared(tmp_path / "data")
    bare, missed = replace(data, held_out_interactions=None), 0
    for rows in (data.validation, data.test):
        want = [slow_seen(log, row) for row in rows]
        assert seen_items(data, rows) == want
        missed += sum(len(all_of - known) for all_of, known in zip(want, seen_items(bare, rows), strict=True))
    assert (missed > 0) == hidden


def test_a_target_that_was_taken_before_is_among_them():
    log, again = make_log([("u", "a", 0), ("u", "b", 1)]), RankingExample("u", ("b",), ("a",), "a")
    data = PreparedData(Catalogue(NO_ITEMS), [], [], [again], log, held_out_interactions=log.clear())
    assert seen_items(data, [again]) == [{"a", "b"}]


def test_the_history_of_a_user_is_the_whole_log_in_order():
    learn = make_log([("b", "i1", 1), ("b", "i9", 5), ("a", "i3", 2), ("a", "i2", 2)])
    later = make_log([("b", "i5", 3), ("c", "i1", 1)])
    data = PreparedData(Catalogue(NO_ITEMS), [], [], [], learn, held_out_interactions=later)
    assert user_histories(data) == {"a": ["i3", "i2"], "b": ["i1", "i5", "i9"], "c": ["i1"]}
    assert [*user_histories(data, ["c", "a"])] == ["c", "a"]
    assert user_histories(replace(data, held_out_interactions=None), ["b"]) == {"b": ["i1", "i9"]}
    with pytest.raises(DataError, match="user 'd' is not in the run's log"):
        user_histories(data, ["a", "d"])
