"""Retrieve-then-rank in a recipe: a row of the table, and metrics over the whole catalogue beside the retriever's."""

import json
import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from prefrec.data import read_prepared
from prefrec.evaluation import full_ranks, metrics_for
from prefrec.pipeline import full_catalogue
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import lm_ranker
from prefrec.rankers import lm
from prefrec.rankers.morec import load_morec
from prefrec.rankers.retrieve import RetrieveThenRank

MOREC = {"kind": "morec", "hidden_size": 8, "inner_size": 16, "n_layers": 1, "epochs": 2}
PAIRS = [
    {"kind": "retrieve-then-rank", "retriever": "MoRec", "ranker": "zero-shot", "retrieve": 4, "rows": 9},
    {
        "kind": "retrieve-then-rank",
        "name": "popular",
        "retriever": "popularity",
        "ranker": "MoRec",
        "retrieve": 12,
        "rows": None,
    },
]


def _recipe(recipe: Recipe, *pairs) -> Recipe:
    rankers = [MOREC | {"encoder": recipe.model.name}, *(pairs or PAIRS)]
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "sequential": [], "rankers": rankers}
    raw["evaluate"] |= {"rows": 8, "generate_rows": 0}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """To be read only."""
    folder = tmp_path_factory.mktemp("retrieve") / "run"
    run_recipe(_recipe(recipe), folder)
    return folder


def _measured(folder, name="retrieve-then-rank") -> dict:
    return json.loads((folder / "rankers" / name / "full_catalogue.json").read_text())["evaluation"]


def test_full_catalogue_metrics_are_those_of_the_two_rankers(finished, recipe):
    data = read_prepared(finished / "data")
    morec = load_morec(finished / "rankers" / "MoRec", data.catalogue)
    zero_shot = lm_ranker("zero-shot", None, data, recipe.model)
    log = data.train_interactions
    seen = [log.filter(log["user_id"] == e.user_id)["item_id"].to_list() for e in data.test[:9]]
    both = {"MoRec": morec, "retrieve-then-rank": RetrieveThenRank("both", morec, zero_shot, 4)}
    found = _measured(finished)
    assert found["n"] == 9
    assert list(found["metrics"]) == ["random", "popularity", "co-occurrence", "item-kNN", *both]
    for name, ranker in both.items():
        ranks = full_ranks(ranker, data.test[:9], data.catalogue, seen)
        for metric, value in metrics_for((1, 4, 5, 10)).items():
            assert found["metrics"][name][metric]["mean"] == pytest.approx(float(value(ranks).mean()), abs=1e-9)
    of = {name: found["metrics"][name]["hr@4"]["mean"] for name in both}
    assert of["MoRec"] == of["retrieve-then-rank"]  # the ranker orders what was retrieved, no more
    assert {(c["ranker"], c["against"]) for c in found["comparisons"]} == {("retrieve-then-rank", "MoRec")}


def test_a_reference_row_may_retrieve_and_any_ranker_rank(finished):
    found = _measured(finished, "popular")
    assert found["n"] == len(read_prepared(finished / "data").test)
    assert list(found["metrics"]) == ["random", "popularity", "co-occurrence", "item-kNN", "popular"]
    assert found["metrics"]["popular"]["hr@12"]["mean"] == found["metrics"]["popularity"]["hr@12"]["mean"]
    assert 0 < found["chance"] < 1 / 40


def test_rows_of_the_table(finished):
    metrics = json.loads((finished / "metrics.json").read_text())["evaluation"]["metrics"]
    assert list(metrics)[-3:] == ["MoRec", "retrieve-then-rank", "popular"]
    assert metrics["popular"] == metrics["MoRec"]  # lists of six: all are retrieved
    assert np.isfinite(metrics["retrieve-then-rank"]["ndcg@3"]["mean"])


def test_what_has_not_changed_is_not_measured_again(finished, recipe, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    asked = []
    inner = full_catalogue.whole_catalogue
    monkeypatch.setattr(
        full_catalogue, "whole_catalogue", lambda rows, *rest: asked.append(len(rows)) or inner(rows, *rest)
    )
    run_recipe(_recipe(recipe), tmp_path / "run")
    assert asked == []
    run_recipe(_recipe(recipe, PAIRS[0] | {"rows": 3}), tmp_path / "run", until="rankers")
    assert asked == [3]
    run_recipe(_recipe(recipe, PAIRS[0] | {"rows": 3, "retrieve": 2}), tmp_path / "run", until="rankers")
    assert asked == [3, 3]


def test_rows_a_pass_are_the_recipes_and_decide_nothing(finished, recipe, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    asked = []
    inner = lm.own_batches
    monkeypatch.setattr(lm, "own_batches", lambda sets, size: asked.append(size) or inner(sets, size))
    raw = _recipe(recipe).model_dump(mode="json")
    changed = Recipe.model_validate(raw | {"evaluate": raw["evaluate"] | {"batch_size": 3}})
    run_recipe(changed, tmp_path / "run")
    assert asked == []
    for place in ("rankers/retrieve-then-rank", "predictions"):
        shutil.rmtree(tmp_path / "run" / place)
    run_recipe(changed, tmp_path / "run")
    assert asked == [3, 3, 3]  # over the whole catalogue; zero-shot and the pair in the table


def test_it_is_measured_again_when_more_is_known_of_what_was_taken(finished, recipe, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "data" / "held_out.parquet").unlink()  # as an earlier prefrec left it
    run_recipe(_recipe(recipe), tmp_path / "run", until="rankers")
    known = json.loads((finished / "rankers" / "popular" / "stage.json").read_text())["key"]
    assert json.loads((tmp_path / "run" / "rankers" / "popular" / "stage.json").read_text())["key"] != known
    trained = json.loads((finished / "rankers" / "MoRec" / "stage.json").read_text())
    assert json.loads((tmp_path / "run" / "rankers" / "MoRec" / "stage.json").read_text()) == trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retriever": "SASRec"}, "retrieve-then-rank.retriever: there is no 'SASRec' before it; there are random, "),
        ({"ranker": "s-dpo"}, "retrieve-then-rank.ranker: there is no 's-dpo' before it; there are zero-shot, MoRec"),
        ({"retriever": "zero-shot"}, "'zero-shot' is shown the titles that it scores"),
    ],
)
def test_mistakes_are_named(recipe, changes, message):
    with pytest.raises(ValidationError, match=message):
        _recipe(recipe, PAIRS[0] | changes)
