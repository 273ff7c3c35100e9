"""The predictions file: what is written is what is read, and strangers are refused."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation.predictions import PREDICTION_SCHEMA, prediction_frame, ranks_of, read_predictions

EXAMPLES = [RankingExample("u", ("a",), ("b", "c", "d"), "c"), RankingExample("v", (), ("a", "b"), "a")]
SCORES = np.array([[0.1, 0.3, 0.2], [1.0, 2.0, -np.inf]])
RANKS = np.array([1, 2]), np.array([0, 3])


def test_round_trip(tmp_path):
    frame = prediction_frame("lm", EXAMPLES, SCORES, RANKS, ["C", "what?"], ["c", None])
    assert frame.schema == PREDICTION_SCHEMA
    assert frame["scores"].to_list() == [[0.1, 0.3, 0.2], [1.0, 2.0]]
    assert frame["choice"].to_list() == ["c", None]
    assert [values.tolist() for values in ranks_of(frame)] == [[1, 2], [0, 3]]
    frame.write_parquet(tmp_path / "predictions.parquet")
    assert read_predictions(tmp_path / "predictions.parquet").equals(frame)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a predictions file"):
        read_predictions(tmp_path / "text.parquet")
    pl.DataFrame({"ranker": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"not a predictions file .*row"):
        read_predictions(tmp_path / "other.parquet")
