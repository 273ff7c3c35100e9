"""The predictions file: what is written is what is read, and strangers are refused."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation.predictions import (
    PREDICTION_SCHEMA,
    prediction_frame,
    ranks_of,
    read_predictions,
    write_predictions,
)

EXAMPLES = [
    RankingExample("u", ("a",), ("b", "c", "d"), "c"),
    RankingExample("v", (), ("a", "b"), "a"),
]
SCORES = np.array([[0.1, 0.3, 0.2], [1.0, 2.0, -np.inf]])
RANKS = np.array([1, 2]), np.array([0, 3])


def test_round_trip(tmp_path):
    frame = prediction_frame("lm", EXAMPLES, SCORES, RANKS, ["C", "what?"], ["c", None])
    assert frame.schema == PREDICTION_SCHEMA
    assert frame["scores"].to_list() == [[0.1, 0.3, 0.2], [1.0, 2.0]]
    assert frame["choice"].to_list() == ["c", None]
    path = tmp_path / "run" / "predictions.parquet"
    write_predictions(frame, path)
    write_predictions(frame, path)
    assert read_predictions(path).equals(frame)
    assert [p.name for p in path.parent.iterdir()] == ["predictions.parquet"]


def test_files_of_an_earlier_prefrec_have_no_ties(tmp_path):
    frame = prediction_frame("pop", EXAMPLES, SCORES, RANKS)
    frame.drop("tied").write_parquet(tmp_path / "old.parquet")
    old = read_predictions(tmp_path / "old.parquet")
    assert old.equals(frame.with_columns(tied=pl.lit(0, pl.UInt32)))
    for given, ties in ((frame, [0, 3]), (frame.drop("tied"), [0, 0])):
        ranks, tied = ranks_of(given)
        assert (ranks.tolist(), tied.tolist()) == ([1, 2], ties)


def test_without_text():
    frame = prediction_frame("pop", EXAMPLES, SCORES, RANKS)
    assert frame["generated"].null_count() == frame["choice"].null_count() == 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.parquet"
    frame = prediction_frame("pop", EXAMPLES, SCORES, RANKS)
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
