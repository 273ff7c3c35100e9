"""The results of an evaluation: what is written and read again is the same, byte for byte."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prefrec.evaluation import audit_prepared, evaluate_predictions, predict
from prefrec.evaluation.best import choose
from prefrec.evaluation.by_user import UserSpread, user_spread
from prefrec.evaluation.preferences import evaluate_preferences
from prefrec.evaluation.targets import item_classes
from prefrec.pipeline.opened import open_run
from prefrec.rankers import PopularityRanker
from prefrec.rankers.baselines import RandomRanker
from prefrec.runs.results import (
    BEST,
    METRICS,
    PREDICTIONS,
    PREFERENCES,
    RESULTS,
    UPDATE,
    Results,
    read_results,
    write_results,
)
from verdicts import NONE


@pytest.fixture
def results(adapted_run) -> Results:
    """Results with all parts, with NaN and infinity."""
    data = open_run(adapted_run).data
    rankers = [PopularityRanker.fit(data.train_interactions), RandomRanker(0)]
    rows = data.test[:20]
    predictions = pl.concat([predict(r, rows, data.catalogue, generate=False) for r in rankers])
    evaluation = evaluate_predictions(
        predictions,
        audit=audit_prepared(data),
        known_items=set(data.train_interactions["item_id"]),
        items=item_classes(data, "test"),
        repeated=[n % 2 == 0 for n in range(len(rows))],
    )
    one = evaluate_predictions(predictions.filter(pl.col("row") == 0), audit=NONE)
    assert math.isnan(one.metrics["random"]["mrr"].low)
    liked = np.array([[True, False], [False, True], [True, False]])
    scores = {"a": np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 3.0]]), "b": np.zeros((3, 2))}
    found = evaluate_preferences(scores, liked, ~liked, ["u", "v", "w"], [("a", "b")], {"a": math.inf, "b": 0.5}, 7)
    return Results(
        evaluation=replace(evaluation, logs={"popularity": "training"}),
        full_catalogue=one,
        generation=replace(one, best_reference="popularity"),
        beyond_accuracy={"popularity": {"coverage": 0.1, "novelty": 2.0, "diversity": 0.0}},
        by_user=user_spread(predictions) | {"none": UserSpread(1, 0.0, [0.0] * 9, math.nan)},
        made_of={"sft": "k", "data": "d"},
        preferences=found,
        update={"old": one, "newest": evaluation},
        best=choose({"popularity": np.ones(4), "random": np.array([0.0, np.nan, 1.0, 0.5])}, {"sft": "it is slow"}),
        predictions=predictions,
    )


def _files(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS if name != PREDICTIONS}


def test_results_that_are_read_and_written_again_are_the_same_bytes(results, tmp_path):
    write_results(tmp_path / "first", results)
    missing = []
    again = read_results(tmp_path / "first", missing)
    assert missing == []
    assert again == results
    write_results(tmp_path / "second", again)
    assert _files(tmp_path / "second") == _files(tmp_path / "first")


def test_parts_that_were_not_measured_have_no_file(results, tmp_path):
    write_results(tmp_path, results)
    write_results(tmp_path, Results("validation", evaluation=results.evaluation, predictions=results.predictions))
    assert {name for name in RESULTS if (tmp_path / name).exists()} == {METRICS, PREDICTIONS}
    again = read_results(tmp_path, missing := [])
    assert (again.split, again.made_of, again.full_catalogue, again.best, missing) == (
        "validation",
        None,
        None,
        None,
        [],
    )
    assert Results().to_json() == {}
    assert repr(Results()) == "no results"


@pytest.mark.parametrize(
    ("file", "part"), [(METRICS, "evaluation"), (PREFERENCES, "preferences"), (UPDATE, "update"), (BEST, "best")]
)
def test_a_damaged_file_of_results_takes_only_its_own_part_away(results, tmp_path, file, part):
    write_results(tmp_path, results)
    (tmp_path / file).write_text((tmp_path / file).read_text() + " ")
    again = read_results(tmp_path, missing := [])
    assert not getattr(again, part)
    assert [sentence.partition(":")[0] for sentence in missing] == [f"{file} cannot be read"]
    others = {"preferences", "update", "best"} - {part}
    assert all(getattr(again, other) for other in others)


def test_results_are_shown_as_tables_with_the_default(results):
    text = repr(results)
    assert text.startswith(results.evaluation.audit.verdict)
    assert text.endswith(f"{results.best.sentence}.")
    assert text.count("HR@10") == 2
