"""Ranks in a file give the tables of the predictions that they are of, and keep what is known of each row."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from drawn_logs import make_log
from fixed_rankers import CATALOGUE, Fixed
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import evaluate_predictions, predict, rank_catalogue
from prefrec_lab.ranks import DAY, RANK_SCHEMA, coded, evaluate_ranks, read_ranks, row_facts, write_ranks
from verdicts import NONE

RANKERS = [Fixed("a", "abcdef"), Fixed("b", "badcfe")]
ROWS = [RankingExample(f"u{n // 2}", ("f",), ("a", "b", "c"), "abc"[n % 3], 10**9 + n * DAY // 2) for n in range(40)]
KNOWN = {"a", "b"}
RANKS = Path(__file__).parents[2] / "lab" / "results" / "ranks"


@pytest.fixture
def data() -> PreparedData:
    """Item a is in training twice, b in validation only, c is new."""
    log, later = make_log([("v", "a", 1), ("w", "a", 2)]), make_log([("v", "b", 3), ("u0", "c", 4)])
    validation = [RankingExample("v", ("a",), ("b", "c"), "b")]
    return PreparedData(CATALOGUE, [], validation, ROWS, log, held_out_interactions=later)


@pytest.mark.parametrize("whole", [False, True])
def test_tables_can_be_made_again(tmp_path, data, whole):
    if whole:
        frames = [rank_catalogue(r, ROWS, CATALOGUE, [()] * len(ROWS), KNOWN) for r in RANKERS]
    else:
        frames = [predict(r, ROWS, CATALOGUE) for r in RANKERS]
    frames[1] = frames[1].head(30)
    found = write_ranks(pl.concat(frames), row_facts(data, ROWS, "test"), tmp_path / "results" / "ranks.parquet")
    assert found.schema == RANK_SCHEMA
    assert found.equals(read_ranks(tmp_path / "results" / "ranks.parquet"))
    again = evaluate_ranks(tmp_path / "results" / "ranks.parquet", ks=(1, 2), compare="a", audit=NONE)
    made = evaluate_predictions(pl.concat(frames), ks=(1, 2), compare="a", known_items=KNOWN, audit=NONE)
    assert (again.metrics, again.groups) == (made.metrics, made.groups)
    assert repr(again.comparisons) == repr(made.comparisons)
    assert len(again.groups) == (4 if whole else 2)


def test_each_row_keeps_class_counts_and_day_whoever_ranks_it(tmp_path, data):
    frame = coded(pl.concat([predict(r, ROWS, CATALOGUE) for r in RANKERS]))
    found = write_ranks(frame, row_facts(data, ROWS, "test"), tmp_path / "ranks.parquet")
    for ranker in ("a", "b"):
        own = found.filter(ranker=ranker).sort("row")
        assert own["class"].to_list()[:3] == ["in training", "in validation only", "new"]
        assert own.select("trained", "known").rows()[:3] == [(2, 2), (0, 1), (0, 0)]
        assert own["day"].to_list() == [n // 2 for n in range(40)]
    undated = row_facts(data, [replace(e, time=None) for e in ROWS], "test")
    assert undated["day"].null_count() == len(ROWS)
    with pytest.raises(DataError, match="no facts of some rows"):
        write_ranks(frame, undated.head(3), tmp_path / "ranks.parquet")


KEPT = [path for path in sorted(RANKS.glob("*.parquet")) if not path.stem.startswith("poor-")]
"""Positive controls of a trial rank validation examples, and are left out."""
EARLIER = "control-amazon-book-log"
"""It ranks 5,000 test examples, as the table did until it had all of them."""


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_ranks_have_the_same_labels_in_all_seeds_and_controls(path):
    name = path.stem.removeprefix("control-").removesuffix("-random")
    name = "movielens-100k" if name.startswith("paper") else name.removesuffix("-1").removesuffix("-2")
    rows = [read_ranks(p).unique("row").sort("row") for p in (path, RANKS / f"{name}.parquet")]
    labels = [one.select("user", "target", "class", "trained", "known", "day") for one in rows]
    assert labels[0].equals(labels[1]) or path.stem == EARLIER
    assert not labels[0].select("class", "trained", "known").null_count().sum_horizontal().item()


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    pl.DataFrame({"ranker": ["a"]}).write_parquet(tmp_path / "other.parquet")
    for name in ("absent", "text", "other"):
        with pytest.raises(DataError, match=f"{name}.parquet: not a file of ranks"):
            evaluate_ranks(tmp_path / f"{name}.parquet", audit=NONE)
