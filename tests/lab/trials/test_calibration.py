"""Calibration: figures of SASRec from kept ranks beside published ones, and when they replicate them."""

import polars as pl
import pytest

from prefrec_lab.ranks import RANK_SCHEMA
from prefrec_lab.trials.calibration import is_close, table


def write(folder, learns, places):
    """Ranks of two targets for 25 users each, at these places."""
    rows = [
        {"ranker": name, "user": str(n), "target": str(n % 2), "class": "train", "trained": 3, "known": 3, "row": n}
        | {"rank": place[n % 2], "tied": 0, "listed": 100, "class_rank": 1, "class_tied": 0, "class_listed": 100}
        for name, place in places.items()
        for n in range(50)
    ]
    pl.DataFrame(rows, schema=RANK_SCHEMA).write_parquet(folder / f"amazon-beauty-sasrec-{learns}.parquet")


def test_each_model_stands_beside_the_published_one(tmp_path):
    write(tmp_path, "train", {"SASRec-full": (1, 50), "SASRec-sampled": (10, 11)})
    write(tmp_path, "val", {"SASRec-sampled": (3, 50)})
    rows = table(tmp_path)["rows"]
    assert [row[:2] for row in rows] == [
        ["SASRec, full softmax", "train"],
        ["SASRec, 256 negatives", "train"],
        ["SASRec, 256 negatives", "+val"],
    ]
    assert [row[2].split()[0] for row in rows] == ["0.5000"] * 3
    assert [row[4].split()[0] for row in rows] == ["0.5000", "0.1445", "0.2500"]  # half of 1 / log2(rank + 1)
    assert rows[0][5] == "0.0539 (+827.6%)"
    assert table(tmp_path / "nothing")["rows"] == []


@pytest.mark.parametrize(("value", "close"), [(0.96, True), (1.04, True), (0.94, False), (1.06, False)])
def test_five_per_cent_either_way_are_close(value, close):
    assert is_close(value, 1.0) is close
