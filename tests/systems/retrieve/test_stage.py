"""Retrieve-then-rank in a recipe: a row of the table, on lists and over the whole catalogue."""

import json
from pathlib import Path

import numpy as np
import pytest

from baselines import UNDATED_BASELINES
from full_ranks import full_ranks
from prefrec.data import read_prepared
from prefrec.evaluation import metrics_for
from prefrec.pipeline.measure import logs_read
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.stages.baseline import BaselineStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from prefrec_systems.morec import load_morec
from prefrec_systems.retrieve import RetrieveThenRank
from prefrec_systems.retrieve.ranker import RetrieveThenRankConfig
from prefrec_systems.retrieve.stage import RetrieveThenRankStage

MOREC = {"kind": "morec", "hidden_size": 8, "inner_size": 16, "n_layers": 1, "epochs": 2}
PAIR = {"kind": "retrieve-then-rank", "retriever": "MoRec", "ranker": "zero-shot", "retrieve": 4}
POPULAR = PAIR | {"name": "popular", "retriever": "popularity", "ranker": "MoRec", "retrieve": 12}


def test_full_catalogue_metrics_are_those_of_the_two_rankers(recipe, alone, tmp_path):
    rankers = (MOREC | {"encoder": recipe.model.name}, PAIR, POPULAR)
    run_recipe(alone(*rankers, evaluate={"rows": 8, "generate_rows": 0}), tmp_path)
    data = read_prepared(tmp_path / "data")
    morec = load_morec(tmp_path / "rankers" / "MoRec", data.catalogue)
    zero_shot = lm_ranker("zero-shot", None, data, recipe.model)
    log = data.train_interactions
    seen = [log.filter(log["user_id"] == e.user_id)["item_id"].to_list() for e in data.test[:8]]
    both = {"MoRec": morec, "retrieve-then-rank": RetrieveThenRank("both", morec, zero_shot, 4)}
    found = json.loads((tmp_path / "metrics.json").read_text())["full_catalogue"]
    assert found["n"] == 8
    assert list(found["metrics"]) == [*UNDATED_BASELINES[1:], "zero-shot", *both, "popular"]
    for name, ranker in both.items():
        ranks = full_ranks(ranker, data.test[:8], data.catalogue, seen)
        for metric, value in metrics_for([10]).items():
            assert found["metrics"][name][metric]["mean"] == pytest.approx(float(value(*ranks).mean()), abs=1e-9)
    of = {name: found["metrics"][name]["hr@10"]["mean"] for name in both}
    assert of["MoRec"] == of["retrieve-then-rank"]  # the ranker orders what was retrieved, no more


def test_a_blend_inside_ranks_validation_examples_without_their_targets(run_with_rankers):
    run = open_run(run_with_rankers)
    two, fused = run.stage("two"), run.stage("fused")
    assert two.on("validation").key != two.key == two.on("test").key
    rows = run.data.validation
    out_of_fold, own = (entry.load(8).score(rows) for entry in (fused.on("validation"), fused))
    assert not np.allclose(out_of_fold, own)
    for entry in (two.on("validation"), two.on("validation").full, two.full.on("validation")):
        np.testing.assert_allclose(entry.load(8).ranker.score(rows), out_of_fold, rtol=1e-5)
    np.testing.assert_allclose(two.load(8).ranker.score(rows), own, rtol=1e-5)


def test_the_table_says_that_a_blend_inside_counts_validation_interactions(run_with_rankers):
    run = open_run(run_with_rankers)
    logs = logs_read(run.data, run.recipe.evaluate, [run.stage("two"), run.stage("fused")])
    assert logs["two"] == logs["fused"] == "training, and its counts and baselines validation, too"


def test_a_pair_without_a_blend_is_the_same_for_both_splits(recipe, data):
    inputs = RunInputs(data, "key", recipe.model, recipe.lora, 0)
    before = {name: BaselineStage(inputs, name) for name in ("popularity", "item-kNN")}
    config = RetrieveThenRankConfig(retriever="popularity", ranker="item-kNN")
    pair = RetrieveThenRankStage(inputs, config, Path(), before)
    assert pair.on("validation") is pair
