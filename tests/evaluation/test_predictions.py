"""The predictions file: what is written is what is read, and strangers are refused."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation.predictions import (
    PREDICTION_SCHEMA,
    best_only,
    prediction_frame,
    read_predictions,
    write_predictions,
)

EXAMPLES = [
    RankingExample("u", ("a",), ("b", "c", "d"), "c"),
    RankingExample("v", (), ("a", "b"), "a"),
]
SCORES = np.array([[0.1, 0.3, 0.2], [1.0, 2.0, -np.inf]])


def test_round_trip(tmp_path):
    frame = prediction_frame("lm", EXAMPLES, SCORES, np.array([1, 2]), ["C", "what?"], ["c", None])
    assert frame.schema == PREDICTION_SCHEMA
    assert frame["scores"].to_list() == [[0.1, 0.3, 0.2], [1.0, 2.0]]
    assert frame["choice"].to_list() == ["c", None]
    path = tmp_path / "run" / "predictions.parquet"
    write_predictions(frame, path)
    write_predictions(frame, path)
    assert read_predictions(path).equals(frame)
    assert [p.name for p in path.parent.iterdir()] == ["predictions.parquet"]


def test_without_text():
    frame = prediction_frame("pop", EXAMPLES, SCORES, np.array([1, 2]))
    assert frame["generated"].null_count() == frame["choice"].null_count() == 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.parquet"
    frame = prediction_frame("pop", EXAMPLES, SCORES, np.array([1, 2]))
    write_predictions(frame, path)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        write_predictions(frame.drop("rank"), path)
    assert read_predictions(path).equals(frame)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such predictions file"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a file of predictions"):
        read_predictions(tmp_path / "text.parquet")
    pl.DataFrame({"ranker": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"not a file of predictions .*row"):
        read_predictions(tmp_path / "other.parquet")


def test_the_best_candidates_alone():
    frame = best_only(prediction_frame("pop", EXAMPLES, SCORES, np.array([1, 2])), 2)
    assert frame.schema == PREDICTION_SCHEMA
    assert frame["candidates"].to_list() == [["c", "d"], ["b", "a"]]
    assert frame["scores"].to_list() == [[0.3, 0.2], [2.0, 1.0]]
    assert frame["listed"].to_list() == [3, 2]
    assert frame["rank"].to_list() == [1, 2]
