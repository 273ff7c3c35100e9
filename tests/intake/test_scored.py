"""Files of scores and targets: tables, TREC runs, qrels, and what is wrong with them."""

import polars as pl
import pytest

from prefrec.errors import DataError
from prefrec.intake.scored import read_scores, read_targets

ROWS = [("u1", "007", 2.5), ("u1", "8", -1.0), ("u2", "8", 0.0)]
RUN = "u1 Q0 007 1 2.5 mine\n\nu1\tQ0\t8 2 -1 mine\nu2 Q0 8 1 0e0 mine\n"


def _write(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_all_forms_of_scores_are_read_alike(tmp_path):
    table = pl.DataFrame(ROWS, schema=["user_id", "item_id", "score"], orient="row")
    paths = [_write(tmp_path, "mine.run", RUN), tmp_path / "a.csv", tmp_path / "a.parquet"]
    table.with_columns(other=pl.lit("x")).write_csv(paths[1])
    table.write_parquet(paths[2])
    renamed = table.rename({"user_id": "User", "item_id": "itemId", "score": "prediction"})
    renamed.write_csv(tmp_path / "b.tsv", separator="\t")
    for path in [*paths, tmp_path / "b.tsv"]:
        assert read_scores(path).rows() == ROWS, path


def test_targets_are_qrels_or_a_log(tmp_path):
    qrels = _write(tmp_path, "test.qrels", "u1 0 007 2\nu1 0 8 0\nu2 0 8 1\nu3 0 8 -1\n")
    assert read_targets(qrels).rows() == [("u1", "007", 2.0), ("u2", "8", 1.0)]
    log = _write(tmp_path, "log.csv", "user,item,time\nu1,007,5\nu2,8,6\n")
    assert read_targets(log).rows() == [("u1", "007", 1.0), ("u2", "8", 1.0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user,item,score\nu,a,1\nu,b,\n", "line 3, column score: "),
        ("a.csv", "user,item,score\nu,a,NaN\n", "line 2, column score: 'NaN' is not a number"),
        ("a.csv", "user,item,score\nu,a,inf\n", "line 2, column score: 'inf' is not a number"),
        ("a.csv", "user,item,score\nu,a,1\nv,a,1\nu,a,2\n", "line 4: user 'u' and item 'a' occur more than once"),
        ("a.csv", "user,item,rating\nu,a,1\n", "no column score among user, item, rating; name the columns user_id"),
        ("a.csv", "user,item,score\n", "there are no rows"),
        ("a.run", "u Q0 a 1 1.0 x\nu Q0 a 2 0.5 x\n", "line 2: user 'u' and item 'a' occur more than once"),
        ("a.run", "u Q0 a 1 1.0 x\nu Q0 b 2 nan x\n", "line 2: the score 'nan' is not a finite number"),
        ("a.run", "u Q0 a 1 1.0 x\nu Q0 b 2\n", "line 2: 4 fields; expected 6: user_id q0 item_id rank score tag"),
    ],
)
def test_wrong_scores_are_refused_with_their_line(tmp_path, name, text, message):
    with pytest.raises(DataError) as error:
        read_scores(_write(tmp_path, name, text))
    assert message in str(error.value)
    assert name in str(error.value)


def test_qrels_without_a_relevant_line_are_refused(tmp_path):
    with pytest.raises(DataError, match="no line has a relevance above 0"):
        read_targets(_write(tmp_path, "q", "u 0 a 0\n"))
