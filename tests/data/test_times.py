"""The time of a question, and what is known before it."""

from dataclasses import replace

import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.data.config import PrepareConfig
from prefrec.data.prepare import prepare

DAY = 86_400


@pytest.fixture
def data(tmp_path) -> PreparedData:
    """Six users take eight items a day apart; each user's last is the test, the one before the validation."""
    rows = [(f"u{u}", f"i{(u + k) % 9}", 1_000_000_000 + DAY * (10 * u + k)) for u in range(6) for k in range(8)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    pl.DataFrame({"item_id": [f"i{i}" for i in range(9)], "title": list("ABCDEFGHI")}).write_csv(
        tmp_path / "items.csv"
    )
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    return prepare(PrepareConfig(source="files", candidates={"size": 2}, **files))


def test_a_question_has_the_time_of_its_target(data):
    assert [e.time for e in data.some("test", None)] == [1_000_000_000 + DAY * (10 * u + 7) for u in range(6)]
    assert [e.time for e in data.some("validation", 2)] == [1_000_000_000 + DAY * (10 * u + 6) for u in range(2)]
    assert all(e.time is None for e in data.some("train", None))


def test_the_time_is_no_part_of_a_question(data):
    (first, *_) = data.some("test", 1)
    assert first == replace(first, time=None) == data.test[0]


def test_numbers_of_lines_are_no_dates(data):
    counted = replace(
        data, train_interactions=data.train_interactions.with_columns(pl.col("timestamp") - 1_000_000_000)
    )
    assert data.has_dates
    assert not counted.has_dates
    assert all(e.time is None for e in counted.some("test", None))


def test_validation_targets_are_known_before_test_rows(data):
    assert data.known_interactions("validation").equals(data.train_interactions)
    more = data.known_interactions("test").join(data.train_interactions, on=["user_id", "item_id"], how="anti")
    assert set(more.select("user_id", "item_id").iter_rows()) == {(e.user_id, e.target) for e in data.validation}
