"""Impressions and skips: what was shown and not taken, from the forms that logs have it in."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import read_prepared, write_prepared
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.sources.base import parse_lists, read_lists
from prefrec.intake.sources.files import fold_skips, parse_skipped
from read_sources import files

PATH = Path("log.csv")


FORMS = [[["1", " 2"], [], None], [[1, 2], [], None], ["1 2", "", None], ['["1", 2]', " []", None]]


@pytest.mark.parametrize("given_as", FORMS, ids=repr)
def test_lists_in_every_form(given_as):
    found = parse_lists(pl.Series(given_as), PATH, "shown")
    assert (found.dtype, found.to_list()) == (pl.List(pl.String), [["1", "2"], [], []])


@pytest.mark.parametrize("given_as", [[[1, 7], []], [[1.0, 7.0], []], ["[1, 7]", ""]], ids=repr)
def test_numbers_in_lists_remain_numbers(given_as):
    assert read_lists(pl.Series(given_as), PATH, "history") == [[1, 7], []]
    assert read_lists(pl.Series(['["1", 7]', "1 7"]), PATH, "history") == [["1", 7], ["1", "7"]]


@pytest.mark.parametrize(
    ("given_as", "message"),
    [
        ([[1.5]], r"log\.csv, line 2, column shown: \[1\.5\] is not a list of item ids"),
        (["1", "[2"], r"log\.csv, line 3, column shown: '\[2' is not a list of item ids"),
        (["1", "[[1]]"], r"log\.csv, line 3, column shown: '\[\[1\]\]' is not a list of item ids"),
    ],
)
def test_lists_that_are_none(given_as, message):
    with pytest.raises(DataError, match=message):
        parse_lists(pl.Series(given_as), PATH, "shown")


def test_skips_are_yes_or_no():
    words = ["true", " FALSE", "1", "0", "1.0", "Yes", "", None]
    found = parse_skipped(pl.DataFrame({"skipped": words}), PATH, "skip")["skipped"].to_list()
    assert found == [True, False, True, False, True, True, False, False]
    for kind in (pl.Series([True, False]), pl.Series([1, 0]), pl.Series([1.0, 0.0])):
        assert parse_skipped(pl.DataFrame({"skipped": kind}), PATH, "skip")["skipped"].to_list() == [True, False]
    with pytest.raises(DataError, match=r"log\.csv, line 3, column skip: 'perhaps' is not true or false"):
        parse_skipped(pl.DataFrame({"skipped": ["1", "perhaps"]}), PATH, "skip")


def slow_fold(rows: list[tuple[str, str, int, bool]]) -> dict[tuple[str, str], set[str]]:
    """The obvious way: each skip looks for its user's next item, else for the last one."""
    found: dict[tuple[str, str], set[str]] = {(u, i): set() for u, i, _, skipped in rows if not skipped}
    for user, item, time, skipped in rows:
        own = sorted((t, n, i) for n, (u, i, t, s) in enumerate(rows) if u == user and not s)
        if skipped and own:
            ahead = [i for t, _, i in own if t >= time]
            found[user, ahead[0] if ahead else own[-1][2]].add(item)
    return found


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.booleans()), max_size=25), st.randoms())
def test_a_skip_goes_to_the_next_item_taken(drawn, rng):
    times = rng.sample(range(100), len(drawn))  # type: ignore[attr-defined]
    rows = [(user, f"i{n}", times[n], skipped) for n, (user, skipped) in enumerate(drawn)]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "skipped": pl.Boolean}
    folded = fold_skips(pl.DataFrame(rows, schema=schema, orient="row"))
    assert folded.columns == ["user_id", "item_id", "timestamp", "impressions"]
    assert {(u, i): set(shown) for u, i, _, shown in folded.iter_rows()} == slow_fold(rows)


def test_from_files_to_prepared_data_and_back(paths, tmp_path):
    log = pl.read_csv(paths["interactions"])
    extra = {"rating": pl.lit(4), "shown": pl.lit("i38 i39 nothing i38"), "skip": pl.lit("no")}
    skips = pl.DataFrame({"user_id": ["u0", "u1"], "item_id": ["i37", "unknown"], "timestamp": [1, 1]})
    told = [log.with_columns(**extra), skips.with_columns(**extra | {"skip": pl.lit("yes")})]
    pl.concat(told, how="diagonal").write_csv(paths["interactions"])
    columns = {"impressions": "shown", "skipped": "skip"}
    source = files(**paths, **columns)
    assert source.notes == ["65 impressions of items without a title were dropped"]
    assert len(source.interactions) == 64
    data = prepare(PrepareConfig(source="files", **paths, columns=columns, split="time-share"))
    write_prepared(data, tmp_path / "data")
    back = read_prepared(tmp_path / "data")
    for frame in (back.train_interactions, back.held_out_interactions):
        assert frame.columns == ["user_id", "item_id", "timestamp", "rating", "impressions"]
        assert set(frame["rating"]) == {4.0}
    first = back.train_interactions.filter(pl.col("user_id") == "u0")["impressions"].to_list()
    assert [set(shown) for shown in first[:2]] == [{"i37", "i38", "i39"}, {"i38", "i39"}]
    assert {"i37", "i38", "i39"} <= set(back.catalogue.ids)


def test_merged_titles_are_merged_among_impressions(shop):
    paths = shop(items=10)
    with paths["items"].open("a") as f:
        f.write("same,Thing 3\n")
    pl.read_csv(paths["interactions"]).with_columns(shown=pl.lit("same i4")).write_csv(paths["interactions"])
    source = files(**paths, impressions="shown", duplicate_titles="merge")
    shown = {(i, *sorted(s)) for i, s in source.interactions.select("item_id", "impressions").iter_rows()}
    assert {("i3", "i4"), ("i4", "i3"), ("i1", "i3", "i4")} <= shown


def test_what_was_shown_beside_a_skip_is_kept(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{i},Thing {i}\n" for i in range(6)))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,shown,skip\nu,2,1,3 4,1\nu,1,2,5,0\nu,0,3,,0\n")
    columns = {"impressions": "shown", "skipped": "skip"}
    source = files(tmp_path / "log.csv", tmp_path / "items.csv", **columns)
    shown = dict(source.interactions.select("item_id", "impressions").iter_rows())
    assert {item: {*of_item} for item, of_item in shown.items()} == {"1": {"2", "3", "4", "5"}, "0": set()}


def test_a_log_of_skips_only_names_the_column(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n1,A\n2,B\n")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,skip\nu,1,1,1\nu,2,2,yes\n")
    told = r"log\.csv, column skip: all lines are marked as skips, .* with --columns\.skipped \(`columns\.skipped`"
    with pytest.raises(DataError, match=told):
        files(tmp_path / "log.csv", tmp_path / "items.csv", skipped="skip")
