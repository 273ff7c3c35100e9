"""Ranks in a file give the tables of the predictions that they are of."""

import polars as pl
import pytest

from fixed_rankers import CATALOGUE, Fixed
from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import evaluate_predictions, predict, rank_catalogue
from prefrec_lab.ranks import RANK_SCHEMA, evaluate_ranks, write_ranks
from verdicts import NONE

RANKERS = [Fixed("a", "abcdef"), Fixed("b", "badcfe")]
ROWS = [RankingExample(f"u{n // 2}", ("f",), ("a", "b", "c"), "abc"[n % 3]) for n in range(40)]


@pytest.mark.parametrize("whole", [False, True])
def test_tables_can_be_made_again(tmp_path, whole):
    known = {"a", "b"}
    if whole:
        frames = [rank_catalogue(r, ROWS, CATALOGUE, [()] * len(ROWS), known) for r in RANKERS]
    else:
        frames = [predict(r, ROWS, CATALOGUE) for r in RANKERS]
    frames[1] = frames[1].head(30)
    found = write_ranks(pl.concat(frames), known, tmp_path / "results" / "ranks.parquet")
    assert found.schema == RANK_SCHEMA
    assert found.filter(ranker="a")["class"].to_list() == ["known" if e.target in known else "new" for e in ROWS]
    again = evaluate_ranks(tmp_path / "results" / "ranks.parquet", ks=(1, 2), compare="a", audit=NONE)
    assert again == evaluate_predictions(pl.concat(frames), ks=(1, 2), compare="a", known_items=known, audit=NONE)
    assert len(again.groups) == (4 if whole else 2)


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    pl.DataFrame({"ranker": ["a"]}).write_parquet(tmp_path / "other.parquet")
    for name in ("absent", "text", "other"):
        with pytest.raises(DataError, match=f"{name}.parquet: not a file of ranks"):
            evaluate_ranks(tmp_path / f"{name}.parquet", audit=NONE)
