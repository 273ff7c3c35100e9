"""From a configuration to data: counts of the real sets, determinism, and what is refused."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.errors import ConfigError, DataError
from prefrec.intake import PrepareConfig, prepare


def shop_data(paths: dict[str, Path], **options: Any) -> PreparedData:
    return prepare(PrepareConfig(source="files", **paths, **options))  # type: ignore[arg-type]


def test_small_files_end_to_end(shop):
    data = shop_data(shop(), domain="books")
    assert data.protocol["counts"]["rows"] == {"train": 24, "validation": 8, "test": 8}
    assert (data.domain, len(data.train_interactions)) == ("books", 8 * 6)
    assert {len(e.candidates) for e in data.test} == {20}
    json.dumps(data.protocol)


def test_same_configuration_same_data_whatever_the_order_of_lines(paths):
    one, other = shop_data(paths), shop_data(paths, seed=1)
    header, *lines = paths["interactions"].read_text().splitlines()
    paths["interactions"].write_text("\n".join([header, *lines[::-1]]))
    two = shop_data(paths)
    assert (one.train, one.test, one.protocol) == (two.train, two.test, two.protocol)
    assert one.test != other.test


def test_sampling_rows_does_not_change_their_lists(paths):
    full, few = shop_data(paths), shop_data(paths, max_train_rows=5, max_validation_rows=2, max_test_rows=3)
    assert few.protocol["counts"]["rows"] == {"train": 5, "validation": 2, "test": 3}
    assert set(few.test) <= set(full.test)
    assert set(few.train) <= set(full.train)
    assert few.train_interactions.equals(full.train_interactions)


def test_low_ratings_are_no_negatives(tmp_path):
    rows = [f"u,i{n},{n},{1 if n < 10 else 5}" for n in range(20)] + [f"v,i{n},{n},5" for n in range(20, 40)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows))
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},T{n}\n" for n in range(50)))
    paths = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    data = shop_data(paths, min_rating=3, candidates={"size": 10})
    assert data.protocol["counts"]["interactions_with_min_rating"] == 30
    for part, last in (("train", 18), ("validation", 20), ("test", 20)):  # training does not know the last two
        disliked = {f"i{n}" for n in range(last)}
        for example in data.split(part):
            if example.user_id == "u":
                assert set(example.candidates) & disliked == {example.target}
    notes = ["times from 1970-01-01 to 1970-01-01: too small for dates; they only give an order"]
    notes += ["20 catalogue items without interactions were dropped; `unseen_items` keeps new items"]
    assert data.protocol["notes"] == notes


@pytest.mark.parametrize(
    ("first", "note"),
    [
        (878_700_000_000, "times from 1997-11-05 to 1997-11-05"),
        (-90_000, "times from 1969-12-30 to 1969-12-30: too small for dates; they only give an order"),
    ],
)
def test_the_first_and_the_last_date_are_told(paths, first, note):
    header, *lines = paths["interactions"].read_text().splitlines()
    log = [f"{user},{item},{first + n}" for n, (user, item, _) in enumerate(line.split(",") for line in lines)]
    paths["interactions"].write_text("\n".join([header, *log]))
    assert note in shop_data(paths).protocol["notes"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: [1_200_000_000],
            "1 of 160 times are long after all others, which end on 2001-09-09: for a question ",
        ),
        (lambda: [time.time() + 2 * 86_400] * 3, "3 of 160 times are after the present moment; correct"),
        (lambda: [0, 7], "2 of 160 times are before 1973-03-03, so none counts as a date; correct"),
        (list, None),
    ],
)
def test_times_that_would_spoil_what_is_recent_are_told(shop, capsys, wrong, said):
    paths, values = shop(users=20), [int(moment) for moment in wrong()]
    header, *lines = paths["interactions"].read_text().splitlines()
    rows = [line.split(",") for line in lines]
    times = [1_000_000_000 + n for n in range(len(rows) - len(values))] + values
    log = [f"{user},{item},{moment}" for (user, item, _), moment in zip(rows, times, strict=True)]
    paths["interactions"].write_text("\n".join([header, *log]))
    notes = shop_data(paths).protocol["notes"]
    printed = " ".join(capsys.readouterr().err.split())
    if said is None:
        assert printed == ""
    else:
        assert said in printed
        assert "; correct these times, or drop the lines, if they are wrong" in printed
    # The same files must give the same data tomorrow, so the present moment is in no note.
    noted = said and "present" not in said
    assert [note[:20] for note in notes[1:]] == ([said[:20]] if noted else [])


def test_interactions_without_a_rating_are_below_every_bound(paths):
    header, *lines = paths["interactions"].read_text().splitlines()
    rated = [f"{line},{'' if n % 8 == 7 else 4}" for n, line in enumerate(lines)]
    paths["interactions"].write_text("\n".join([f"{header},rating", *rated]))
    data = shop_data(paths)
    assert data.train_interactions["rating"].null_count() == 0
    assert "8 of 64 interactions have no rating" in data.protocol["notes"]
    assert data.protocol["counts"]["interactions"] == 64
    assert shop_data(paths, min_rating=1).protocol["counts"]["interactions_with_min_rating"] == 56
    assert "rating" not in shop_data(paths, columns={"rating": None}).train_interactions.columns


@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole is not installed")
def test_the_papers_movielens():
    options: dict[str, Any] = {"split": "user", "min_rating": 3}
    data = prepare(PrepareConfig(**options))
    counts = data.protocol["counts"]
    assert data.protocol["split_facts"]["users"] == {"train": 754, "validation": 94, "test": 95}
    assert counts["interactions_with_min_rating"] == 82_520
    assert (counts["rows"]["validation"], counts["rows"]["test"]) == (94, 95)
    assert all(len(e.history) == 10 for e in data.test)
    every = prepare(PrepareConfig(**options, windows="all", max_train_rows=10))
    assert every.protocol["counts"]["rows"] == {"train": 10, "validation": 5_879, "test": 7_649}
    assert {(e.user_id, e.target) for e in data.test} <= {(e.user_id, e.target) for e in every.test}


@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole is not installed")
def test_movielens_leave_last_out():
    data = prepare(PrepareConfig())
    assert data.protocol["counts"]["rows"] == {"train": 94_978, "validation": 943, "test": 943}
    assert data.domain == "movies"
    learnt = set(data.train_interactions.select("user_id", "item_id").iter_rows())
    assert not learnt & {(e.user_id, e.target) for e in (*data.validation, *data.test)}


def test_users_must_be_those_of_the_log(shop, tmp_path, capsys):
    users = tmp_path / "users.csv"
    users.write_text("user_id,plan\nu0,free\nstranger,paid\n")
    assert shop_data(shop(), users=users).users.rows() == [("u0", "free")]
    assert "users.csv has attributes for only 1 of the log's 8 users" in capsys.readouterr().err
    users.write_text("user_id,plan\n0,free\n1,paid\n")
    with pytest.raises(DataError, match=r"users\.csv: none of its 2 users .* is among the 8 users of the log"):
        shop_data(shop(), users=users)


@pytest.mark.parametrize(
    ("start", "timestamp", "what"),
    [
        (0, "timestamp", "numbers that are too small for dates, such as positions"),
        (1_500_000_000, "file-order", "the order of the lines"),
    ],
)
def test_positions_and_the_order_of_lines_are_not_split_by_time(tmp_path, start, timestamp, what):
    """The log is sorted by user, so that its last lines are those of the last users."""
    rows = [(f"u{u}", f"i{(u + n) % 40}", start + n) for u in range(30) for n in range(10)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    items = [{"item_id": f"i{n}", "title": f"Thing {n}"} for n in range(40)]
    pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    files = {"source": "files", "interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    columns = {"timestamp": timestamp}
    config = PrepareConfig(**files, columns=columns, split="time")
    with pytest.raises(ConfigError, match=f"split time needs dates, .* are {what}: .*choose --split leave-last-out"):
        prepare(config)
    assert len(prepare(PrepareConfig(**files, columns=columns, split="leave-last-out")).test) == 30
