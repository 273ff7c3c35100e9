"""The reward of an alignment as a part of a blend: β·(log π − log π_ref), also after a refit."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prefrec.errors import ConfigError
from prefrec.export.ranker import export_ranker
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.blend import Weights
from prefrec.recipe import Recipe, checked_recipe
from prefrec.recommender import Recommender
from prefrec.stages.language_model import LMStage

ITEMS = {"vectors": "tfidf", "learning_rate": 0.02}
COUNTS = ["co-occurrence", "window co-occurrence"]
ALIGN = {"negatives_from": "uniform", "num_negatives": 3, "beta": 0.5, "rows": 40, "epochs": 2}


@pytest.fixture(scope="module")
def items_recipe(recipe) -> Recipe:
    """Item-ID tokens aligned, whose reward a blend has; all refit."""
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": ITEMS}
    raw["sft"] |= {"rows": None, "epochs": 1, "learning_rate": 1e-3}
    raw |= {"lora": None, "align": [raw["align"][1] | ALIGN], "refit": True}
    raw["rankers"] = [
        {"kind": "blend", "parts": [*COUNTS, "sft", "s-dpo reward"]},
    ]
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0, "references": ["random"], "rows": 8}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(items_recipe, tmp_path_factory):
    """To be read only."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    run_recipe(items_recipe, folder)
    return folder


def _rows(run, split):
    return [replace(e, candidates=tuple(run.data.catalogue.ids)) for e in run.data.examples(split, 6)]


def test_the_blend_learns_the_weight_of_the_reward_and_says_what_it_adds(finished):
    weights = Weights.from_json(json.loads((finished / "rankers/blend/blend.json").read_text()))
    assert weights.logits[""].names == (*COUNTS, "sft", "s-dpo reward", "popularity")
    full = json.loads((finished / "metrics.json").read_text())["full_catalogue"]
    assert "blend without s-dpo reward" in {c["against"] for c in full["comparisons"] if c["ranker"] == "blend"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_blend_of_the_reward_scores_by_the_models_of_that_log(finished, items_recipe, split):
    """Test examples are asked of the refit model and its refit reference, validation examples of those before."""
    run = open_run(finished)
    rows = _rows(run, split)
    plan = run.plan.logs[0 if split == "validation" else 1]
    policy, reference = (plan.on_log(name).load(4).score(rows) for name in ("s-dpo", "sft"))
    reward = 0.5 * (policy - reference)
    assert reward.std() > 1e-3
    found = run.stage("blend").on(split).load(4)
    part = next(part for part in found.parts if part.name == "s-dpo reward")
    learnt = {*plan.inputs.data.train_interactions["item_id"]}
    known = np.array([i in learnt for i in run.data.catalogue.ids])
    np.testing.assert_allclose(part.score(rows)[:, known], reward[:, known], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found.score(rows)).all()


def test_predictions_of_the_table_are_not_made_again_for_the_reward(finished):
    """Neither model is loaded, and the reference is the one that is a part itself."""
    run = open_run(finished)
    rows, found = _rows(run, "test"), run.stage("blend").load(4)
    scores = open_run(finished).stage("blend").load(4).score(rows)
    reward = next(part for part in found.parts if part.name == "s-dpo reward").ranker
    sft = next(part for part in found.parts if part.name == "sft").ranker
    assert reward.reference is sft
    answers = {
        stage.key: pl.DataFrame({"candidates": [[*e.candidates] for e in rows], "scores": stage.load(4).score(rows)})
        for stage in (run.stage(name).full for name in ("s-dpo", "sft"))
    }
    found.use_predictions(answers)
    np.testing.assert_allclose(found.score(rows), scores, rtol=1e-4, atol=1e-5)
    assert not any("_ranker" in vars(model) for model in (reward.policy, sft))


def test_the_reward_changes_with_the_alignment_and_its_reference(finished, items_recipe):
    def key(**changes):
        return planned(items_recipe.model_copy(update=changes)).stage("blend").key

    run = open_run(finished)

    def planned(recipe):
        return replace(run.plan, recipe=recipe)

    align = items_recipe.align[0]
    assert key() == run.plan.stage("blend").key
    other = [{"beta": 0.7}, {"epochs": 1.0}]
    keys = {key(align=[align.model_copy(update=change)]) for change in other}
    keys |= {key(sft=items_recipe.sft.model_copy(update={"epochs": 2.0})), key()}
    assert len(keys) == 4


def test_a_blend_with_a_reward_answers_and_is_exported(finished, tmp_path):
    ranked = Recommender.from_run(finished, ranker="blend").recommend(["i3", "i4"], k=3)
    export_ranker(open_run(finished), "blend", tmp_path / "out")
    again = Recommender.from_pretrained(tmp_path / "out").recommend(["i3", "i4"], k=3)
    assert ranked == again


def test_the_reward_of_a_model_of_titles_has_the_base_as_its_reference(recipe, tmp_path):
    """Without SFT; titles are slow, so the reward reranks the best."""
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [recipe.align[1].model_dump() | {"rows": 8}]}
    raw["rankers"] = [{"kind": "blend", "parts": ["co-occurrence", "s-dpo reward"]}]
    raw["evaluate"] |= {"zero_shot": False, "rows": 3, "full_rows": 3, "generate_rows": 0, "references": ["random"]}
    run_recipe(Recipe.model_validate(raw), tmp_path)
    run = open_run(tmp_path)
    ranker, rows = run.stage("blend").load(4), _rows(run, "test")[:2]
    (model,) = ranker.models
    assert ranker.logits[0].names == ("blend", "s-dpo reward")
    base = LMStage("zero-shot", None, run.data, run.recipe.model).load_full(4).score(rows)
    aligned = run.stage("s-dpo").load_full(4).score(rows)
    np.testing.assert_allclose(model.score(rows), aligned - base, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "blend", "parts": ["popularity", "s-dpo rewards"]}, r"rankers\.blend\.parts: no earlier ranker"),
        ({"kind": "blend", "parts": ["sft reward"]}, "no earlier ranker is called 'sft reward'"),
        ({"kind": "retrieve-then-rank", "retriever": "popularity", "ranker": "s-dpo reward"}, "'s-dpo reward'"),
    ],
)
def test_a_reward_is_that_of_an_alignment_and_a_part_alone(recipe, entry, message):
    with pytest.raises(ConfigError, match=message):
        checked_recipe(recipe.model_dump(mode="json") | {"rankers": [entry]})
