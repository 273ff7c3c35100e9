"""Rows of ready-made windows: the forms of their files, and the sequences that they come from."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.errors import DataError
from prefrec.intake import ColumnNames
from prefrec.intake.sources.windows import Row, addition, merge_rows, read_rows

ROWS = [Row("7", ("1", "2"), "3", 50), Row("a b", ("3",), "12", 60)]
HERE = Path("train.csv")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\"['1', '2', '3']\"", "\"['3', '12']\""),
        ('"[""1"", ""2"", ""3""]"', '"[""3"", ""12""]"'),
        *(("[1 2 3]", "[ 3 12]"), ('"1,2, 3"', '"3,12"'), ('"[1.0, 2.0, 3.0]"', '"[3.0, 12.0]"')),
    ],
)
def test_lists_are_written_in_many_ways(tmp_path, first, second):
    path = tmp_path / "rows.csv"
    path.write_text(f"user_id,item_ids,timestamp\n7,{first},50\na b,{second},60\n")
    assert read_rows(path, ColumnNames()) == (ROWS, True, [])


def test_parquet_and_json_lines(tmp_path):
    table = pl.DataFrame({"user_id": ["7", "a b"], "item_ids": [[1, 2, 3], [3, 12]], "timestamp": [50, 60]})
    for name, frame in (("ints", table), ("floats", table.cast({"item_ids": pl.List(pl.Float64)}))):
        frame.write_parquet(tmp_path / f"{name}.parquet")
        assert read_rows(tmp_path / f"{name}.parquet", ColumnNames()).rows == ROWS
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in table.to_dicts()))
    assert read_rows(path, ColumnNames()).rows == ROWS
    own = [{"who": r.user, "seen": list(r.history), "next": r.target, "at": r.time} for r in ROWS]
    path.write_text("".join(json.dumps(r) + "\n" for r in own))
    assert read_rows(path, ColumnNames(user="who", item_list="seen", item="next", timestamp="at")).rows == ROWS
    path.write_text('{"user_id": 1, "item_ids": [1, 2]}\n{"user_id": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2, column item_ids: None is not a list"):
        read_rows(path, ColumnNames())


def test_rows_come_by_time_and_equal_times_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("user_id,item_ids,timestamp\na,1 2,9000\nb,3 4,2000\nc,5 6,9000\nd,7 8,2000.5\n")
    assert [r.user for r in read_rows(path, ColumnNames()).rows] == ["b", "d", "a", "c"]
    in_file = read_rows(path, ColumnNames(timestamp="file-order"))
    assert [(r.user, r.time) for r in in_file.rows] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    assert not in_file.timed


@st.composite
def sequences(draw: st.DrawFn) -> list[list[str]]:
    lists = st.lists(st.integers(0, 30).map(str), unique=True, min_size=2, max_size=12)
    return draw(st.lists(lists, min_size=1, max_size=4))


def slide(sequence: list[str], user: str, width: int, least: int) -> list[Row]:
    """All rows of a sequence: up to `width` items, at least `least`, and the next one."""
    ends = range(min(least, len(sequence) - 1), len(sequence))
    return [Row(user, tuple(sequence[max(0, n - width) : n]), sequence[n], n) for n in ends]


@given(users=sequences(), width=st.integers(1, 6), data=st.data())
def test_merged_rows_are_the_sequences_that_they_were_cut_from(users, width, data):
    least = data.draw(st.integers(1, width))
    rows = [r for n, items in enumerate(users) for r in slide(items, str(n), width, least)]
    rows = sorted([*rows, *data.draw(st.lists(st.sampled_from(rows), max_size=3))], key=lambda r: r.time)
    merged = merge_rows(rows, HERE)
    for n, items in enumerate(users):
        assert [item for item, _ in merged[str(n)]] == items[max(0, min(least, len(items) - 1) - width) :]
        assert all(time >= items.index(item) for item, time in merged[str(n)])


@given(items=st.lists(st.integers(0, 4).map(str), min_size=2, max_size=14), width=st.integers(1, 5))
def test_what_users_take_again_contradicts_nothing(items, width):
    merged = merge_rows(slide(items, "u", width, 1), HERE)
    assert [*dict(merged["u"])] == [*dict.fromkeys(items)]  # where each is taken first


@pytest.mark.parametrize(
    ("sequence", "window", "added"),
    [
        *(("abc", "bcd", "d"), ("abcd", "bc", ""), ("abc", "xyz", "xyz"), ("", "xy", "xy")),
        *(("abcd", "abx", None), ("abc", "xby", None)),
    ],
)
def test_additions(sequence, window, added):
    assert addition([*sequence], [*window]) == (None if added is None else [*added])
