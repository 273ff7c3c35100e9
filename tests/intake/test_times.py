"""The time of a question, and what is known before it."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.intake.config import ColumnNames, PrepareConfig
from prefrec.intake.prepare import prepare
from prefrec.intake.sources import Source
from prefrec.intake.times import parse_timestamps, time_notes
from read_sources import files

DAY = 86_400
DAYS = "days of a spreadsheet (since 1900)"


def _shop(folder, times, **options) -> PreparedData:
    """Six users take eight items each, at `times` of user and place."""
    rows = [(f"u{u}", f"i{(u + k) % 9}", times(u, k)) for u in range(6) for k in range(8)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(9)], "title": list("ABCDEFGHI")})
    items.write_csv(folder / "items.csv")
    files = {"interactions": folder / "log.csv", "items": folder / "items.csv"}
    return prepare(PrepareConfig(source="files", candidates={"size": 2}, **files, **options))


@pytest.fixture
def data(tmp_path) -> PreparedData:
    """A day apart; each user's last is the test, the one before the validation."""
    return _shop(tmp_path, lambda u, k: 1_000_000_000 + DAY * (10 * u + k))


def test_a_question_has_the_time_of_its_target(data):
    assert [e.time for e in data.examples("test", None)] == [1_000_000_000 + DAY * (10 * u + 7) for u in range(6)]
    assert [e.time for e in data.examples("validation", 2)] == [1_000_000_000 + DAY * (10 * u + 6) for u in range(2)]
    assert all(e.time is None for e in data.examples("train", None))
    (first, *_) = data.examples("test", 1)
    assert first == replace(first, time=None) == data.test[0]  # the time is no part of a question


def test_numbers_of_lines_are_no_dates(data):
    log = data.train_interactions.with_columns(pl.col("timestamp") - 1_000_000_000)
    counted = replace(data, train_interactions=log)
    assert (data.has_dates, counted.has_dates) == (True, False)
    assert all(e.time is None for e in counted.examples("test", None))


def test_validation_targets_are_known_before_test_rows(data):
    assert data.known_interactions("validation").equals(data.train_interactions)
    more = data.known_interactions("test").join(data.train_interactions, on=["user_id", "item_id"], how="anti")
    assert set(more.select("user_id", "item_id").iter_rows()) == {(e.user_id, e.target) for e in data.validation}


def test_histories_of_validation_rows_are_known_before_test_rows(data):
    """A user of whom nothing was learnt: what precedes the validation target is known, the test target is not."""
    log = data.train_interactions.filter(pl.col("user_id") != "u0")
    later = pl.concat([data.held_out_interactions, data.train_interactions.filter(user_id="u0")])
    changed = replace(data, train_interactions=log, held_out_interactions=later.sort("user_id", "timestamp"))
    assert set(changed.known_interactions("test").rows()) == set(data.known_interactions("test").rows())


NOON = 1_580_472_000  # 2020-01-31 12:00
MIDNIGHT = NOON - DAY // 2
AS_NUMBERS = {"20200131": NOON - DAY // 2, "202001311200": NOON, "20200131120000": NOON, "43861.5": NOON}


@pytest.mark.parametrize("written", AS_NUMBERS)
@pytest.mark.parametrize("kind", [str, float])
def test_dates_as_numbers_are_dates(written, kind):
    path = Path("log.csv")
    frame, form = parse_timestamps(pl.DataFrame({"t": [kind(written), kind(written)]}), "t", path)
    assert frame.to_dict(as_series=False) == {"t": [AS_NUMBERS[written]] * 2}
    assert time_notes(form, path)[0].startswith("log.csv: times read as da")


def test_a_day_that_there_is_not_is_refused_among_dates():
    dates = pl.DataFrame({"t": ["20200131", "20200230", "20200229"]})
    with pytest.raises(DataError, match=r"line 3, column t: '20200230' is not one of dates in the format YYYYMMDD"):
        parse_timestamps(dates, "t", Path("log.csv"))


MISSING = {
    "seconds": (["20", None, " ", "30"], [20, None, None, 30], 30),
    "NaN": ([20.5, float("nan"), None, 30.0], [20, None, None, 30], 30.0),
    "nanoseconds": ([(NOON * 10**9) + 7000, None, None, NOON * 10**9], [NOON, None, None, NOON], NOON * 10**9),
    "ISO 8601 text": (["2020-01-31T12:00:00", "", "NaT", "2020-01-31"], [NOON, None, None, MIDNIGHT], "2020"),
    "a format": (["31.01.2020 12:00", None, "nan", "31.01.2020 12:00"], [NOON, None, None, NOON], "31.01.2020 12:00"),
    "written": (["20200131", "", "", "20200131"], [MIDNIGHT, None, None, MIDNIGHT], "20200131"),
    "dates": ([date(2020, 1, 31), None, None, date(2020, 1, 31)], [MIDNIGHT, None, None, MIDNIGHT], None),
    "none at all": ([None, "", " ", "NaT"], [None] * 4, None),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_missing_times_become_null_only_if_they_may_be_dropped(case):
    values, want, wrong = MISSING[case]
    frame, path = pl.DataFrame({"t": values}, strict=False), Path("log.csv")
    found, _ = parse_timestamps(frame, "t", path, missing="drop")
    assert (found["t"].to_list(), found.schema["t"]) == (want, pl.Int64)
    way_out = "; correct these rows, or drop the rows without a time with --missing-times drop "
    way_out += r"\(`missing_times: drop` in a recipe\)$"
    with pytest.raises(DataError, match=rf"line {2 if want[0] is None else 3}, column t: .*{way_out}"):
        parse_timestamps(frame, "t", path, missing="error")
    with pytest.raises(DataError, match=r"^(?!.*--missing-times)"):
        parse_timestamps(frame, "t", path)
    if wrong:  # a time that cannot be read is still an error, which counts and names the lines of the file
        last = pl.DataFrame({"t": [*values[:3], "soon" if isinstance(wrong, str) else float("inf")]}, strict=False)
        with pytest.raises(DataError, match=r"line 5, column t: .* \(1 of 4 rows\); (?!.*--missing-times)"):
            parse_timestamps(last, "t", path, form="%d.%m.%Y %H:%M" if case == "a format" else None, missing="drop")


def test_digits_of_a_second_are_read_as_python_writes_them():
    texts = pl.DataFrame({"t": ["31.01.2020 12:00:00.250000", "31.01.2020 12:00:00.5"]})
    frame, _ = parse_timestamps(texts, "t", Path("log.csv"), form="%d.%m.%Y %H:%M:%S.%f")
    assert frame.to_dict(as_series=False) == {"t": [NOON] * 2, "subsecond": [250_000, 500_000]}


@pytest.mark.parametrize(("form", "hint"), [("%d.%m.%Y %H:%M %Z", "%z"), ("%d.%m.%Y %H:%M:%S,%f", "%3f, %6f or %9f")])
def test_formats_that_would_be_read_as_other_times_are_refused(form, hint):
    with pytest.raises(ValidationError, match=f"timestamp_format\n.*{hint}"):
        ColumnNames(timestamp_format=form)


def _parts(folder, *parts) -> Source:
    """A log in parts with these times, of users who take one item after the other."""
    (folder / "parts").mkdir(exist_ok=True)
    for n, times in enumerate(parts):
        taken = [(f"u{k % 3}", f"i{k % 9}", time) for k, time in enumerate(times)]
        log = pl.DataFrame(taken, ["user_id", "item_id", "timestamp"], orient="row")
        log.write_parquet(folder / "parts" / f"{n}.parquet")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(9)], "title": list("ABCDEFGHI")})
    items.write_csv(folder / "items.csv")
    return files(folder / "parts", folder / "items.csv")


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ([NOON], range(33_000, 33_005), f"{DAYS}, but those of parts/0.parquet as seconds"),
        ([5, 6], [33_000, 33_000.5], f"{DAYS}, but those of parts/0.parquet as seconds"),
        ([NOON, NOON], [NOON * 1000], "milliseconds, but those of parts/0.parquet as seconds"),
        (["13/01/2020"], ["01/13/2020"], "%m/%d/%Y, but those of parts/0.parquet as %d/%m/%Y"),
        ([NOON], [date(2020, 1, 31)], "dates, but those of parts/0.parquet as seconds"),
    ],
)
def test_parts_whose_times_may_be_of_two_scales_are_refused(tmp_path, monkeypatch, first, second, told):
    monkeypatch.chdir(tmp_path)
    way_out = "; write all parts in one form, or, if all are texts, set their format with --columns"
    with pytest.raises(
        DataError, match=re.escape(f"parts/1.parquet, column timestamp: times read as {told}{way_out}")
    ):
        _parts(Path(), first, second)


def test_parts_of_one_scale_are_read_and_noted_once(tmp_path):
    assert _parts(tmp_path, [NOON * 1000], [NOON * 1000 + 1], [0]).notes == ["parts: times read as milliseconds"]
    log = _parts(tmp_path, ["2020-01-31T12:00:00"], [date(2020, 1, 31)], []).interactions
    assert log["timestamp"].to_list() == [NOON, MIDNIGHT]


@pytest.mark.parametrize("first", [range(5), range(60_000, 60_005)])
@pytest.mark.parametrize("turned", [False, True])
def test_parts_are_read_as_one_file_of_them_would_be(tmp_path, first, turned):
    parts = [first, range(33_000, 33_005)][:: -1 if turned else 1]
    source = _parts(tmp_path, *parts)
    assert source.interactions["timestamp"].to_list() == [time for part in parts for time in part]
    assert source.notes == []
    of_days = _parts(tmp_path, range(33_000, 33_005), range(43_000, 43_005))
    assert of_days.notes == [f"parts: times read as {DAYS}"]


def test_numbers_of_lines_are_never_days_of_a_spreadsheet(tmp_path, monkeypatch):
    monkeypatch.setattr("prefrec.intake.times._EXCEL_DAYS", (4, 9))
    _parts(tmp_path, *[[NOON] * 5] * 2)
    log = files(tmp_path / "parts", tmp_path / "items.csv", timestamp="file-order").interactions
    assert log["timestamp"].to_list() == [*range(10)]


@pytest.mark.parametrize("first", [20_000_000, 30_000])
def test_counters_stay_counters(first):
    numbers = [*range(first, first + 30_000, 7)]
    path = Path("log.csv")
    frame, form = parse_timestamps(pl.DataFrame({"t": numbers}), "t", path)
    assert (frame["t"].to_list(), time_notes(form, path)) == (numbers, [])


@pytest.mark.parametrize(
    ("times", "share", "days"),
    # `20200101 + k // 4` are two days with a basket of four items each.
    [
        (lambda u, k: 1_600_000_000 + u, "100%", False),
        (lambda u, k: 20200101 + k // 4, "100%", True),
        (lambda u, k: 1_600_000_000 + max(k, 3), "50%", False),
        (lambda u, k: 1_600_000_000 + k, None, False),
        (lambda u, k: 1_600_000_000_500 + u, "100%", False),
        (lambda u, k: 1_600_000_000_500 + max(k, 3), "50%", False),
        (lambda u, k: 1_600_000_000_500 + k, None, False),
    ],
)
def test_the_share_of_ties_is_told(tmp_path, capsys, times, share, days):
    data = _shop(tmp_path, times)
    notes = [n for n in data.protocol["notes"] if "their order is random" in n]
    warned = "set another time column with --columns.timestamp" in capsys.readouterr().err.replace("\n", " ")
    if share is None:
        assert notes == []
    else:
        assert notes[0].startswith(f"{share} of interactions are at the same time as another of their user")
        assert ("(all times are whole days)" in notes[0]) == days
    of_one_time = share == "100%" and not days
    assert warned == of_one_time
    assert any("They count as baskets (4.0 items on average)" in note for note in notes) == days


@pytest.mark.parametrize(
    ("repeats", "shown", "said"),
    [
        ("drop", 7, "a history may have items of its target's own"),
        ("keep", 4, "histories of validation and test examples end before their target's"),
    ],
)
def test_the_note_on_baskets_says_where_histories_end(tmp_path, repeats, shown, said):
    data = _shop(tmp_path, lambda u, k: 20200101 + k // 4, repeats=repeats)
    assert {len(e.history) for e in data.test} == {shown}
    assert [note for note in data.protocol["notes"] if note.endswith(said)]


@pytest.mark.parametrize(("since", "told"), [(1601, "a FILETIME"), (1, ".NET ticks")])
@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_scales_of_windows_are_refused_with_their_conversion(since, told, kind):
    moments = [datetime(year, 5, 17, 12) for year in (1999, 2013, 2041)]
    steps = [(moment - datetime(since, 1, 1)) // timedelta(microseconds=1) * 10 for moment in moments]
    to_1970 = (datetime(1970, 1, 1) - datetime(since, 1, 1)).days * 86_400 * 10**7
    frame = pl.DataFrame({"t": pl.Series(steps).cast(kind)})
    with pytest.raises(DataError, match=rf"column t: .* looks like {told} .*: \(time - {to_1970}\) // 10000000"):
        parse_timestamps(frame, "t", Path("log.csv"))
    seconds = [(step - to_1970) // 10**7 for step in steps]
    assert parse_timestamps(pl.DataFrame({"t": seconds}), "t", Path("log.csv")).frame["t"].to_list() == [
        int(moment.replace(tzinfo=UTC).timestamp()) for moment in moments
    ]
