"""Liked over disliked, at the end of a run: what is asked, what is measured, what the report and the command say."""

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from command import prefrec
from prefrec.evaluation import read_predictions
from prefrec.evaluation.preferences import Preferences
from prefrec.pipeline.preferences import Answers, measure, run_preferences
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.runs.contents import PREFERENCES, read_run
from tiny_run import write_recipe


@pytest.fixture(scope="module")
def finished(rated_recipe, tmp_path_factory):
    """A finished run, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "rated"
    run_recipe(rated_recipe, folder)
    return folder


def judged(folder, name):
    """(user, [(logp, rating), …]) of the questions that a model was asked, ratings from the data."""
    held_out = pl.read_parquet(folder / "data" / "held_out.parquet")
    ratings = {(u, i): r for u, i, r in held_out.select("user_id", "item_id", "rating").iter_rows()}
    for row in read_predictions(folder / "preferences" / f"{name}.parquet").iter_rows(named=True):
        user = row["user_id"]
        yield user, [(s, ratings[user, i]) for i, s in zip(row["candidates"], row["scores"], strict=True)]


def test_metrics_are_those_of_the_answers(finished, rated_recipe):
    found = Preferences.from_json(json.loads((finished / PREFERENCES).read_text()))
    testers = set(pl.read_parquet(finished / "data" / "test.parquet")["user_id"])
    policy, reference = dict(judged(finished, "s-dpo")), dict(judged(finished, "sft"))
    aucs = {"sft: log π": [], "s-dpo: log π": [], "s-dpo: reward": []}
    for user in testers & policy.keys():
        ratings = [r for _, r in policy[user]]
        assert set(ratings) <= {1.0, 2.0, 5.0}
        logps, before = ([s for s, _ in of[user]] for of in (policy, reference))
        kinds = {"sft: log π": before, "s-dpo: log π": logps, "s-dpo: reward": np.subtract(logps, before)}
        for name, scores in kinds.items():
            pairs = [
                (a > b) + 0.5 * (a == b)
                for a, r in zip(scores, ratings, strict=True)
                for b, q in zip(scores, ratings, strict=True)
                if r == 5.0 and q <= 2.0
            ]
            aucs[name].append(np.mean(pairs))
    assert found.users == len(aucs["sft: log π"]) > 10
    assert {name: found.metrics[name]["auc"].mean for name in aucs} == pytest.approx(
        {name: np.mean(values) for name, values in aucs.items()}
    )
    assert list(found.metrics)[:3] == ["sft: log π", "popularity", "mean rating"]
    assert set(found.weights) == {"s-dpo: log π + λ·reward", "s-dpo: mean rating + λ·reward"}
    assert found.chosen_on == len(policy) - found.users > 0
    assert ("s-dpo: reward", "sft: log π") in {(d.ranker, d.against) for d in found.differences}


def test_the_report_shows_them(finished):
    page = (finished / "report.html").read_text()
    assert 'id="preferences"' in page
    assert "s-dpo: mean rating + λ·reward" in page
    assert "Weights, chosen on" in page
    assert read_run(finished).missing == []


def test_the_command_prints_them_and_asks_nothing_twice(finished, rated_recipe, tmp_path):
    path = write_recipe(tmp_path, rated_recipe.model_dump(mode="json"))
    done = prefrec("run", path, "--out", finished)
    assert done.code == 0
    assert "liked over disliked items of" in done.out
    assert "s-dpo: reward" in done.out
    assert "scoring" not in done.err
    told = json.loads(prefrec("run", path, "--out", finished, "--json").out)
    assert told["preferences"]["users"] == json.loads((finished / PREFERENCES).read_text())["users"]


def test_what_is_not_asked_for_any_more_goes(rated_recipe, tmp_path):
    raw = rated_recipe.model_dump(mode="json") | {"sft": None}
    raw["align"][0] |= {"rows": 8}
    run_recipe(Recipe.model_validate(raw), tmp_path)
    found = json.loads((tmp_path / PREFERENCES).read_text())
    assert "zero-shot: log π" in found["metrics"]  # without SFT the base is the reference
    run_recipe(Recipe.model_validate(raw | {"align": []}), tmp_path)
    assert not (tmp_path / PREFERENCES).exists()
    assert 'id="preferences"' not in (tmp_path / "report.html").read_text()


def test_without_interactions_after_the_training_part_it_is_said(rated_recipe, rated, tmp_path, capsys):
    assert run_preferences(rated_recipe, replace(rated, held_out_interactions=None), [], tmp_path) is None
    assert "preferences: not measured, as no test user has liked and disliked items" in capsys.readouterr().err
    unasked = rated_recipe.model_copy(update={"align": []})
    assert run_preferences(unasked, rated, [], tmp_path) is None
    assert capsys.readouterr().err == ""


def test_weights_are_chosen_on_validation_questions_alone():
    kinds = np.array([[1, -1, 0], [1, 1, -1], [-1, 1, 0], [-1, -1, 1]])
    truth = kinds.astype(float)
    validation = np.array([True, True, False, False])
    # On validation rows the reward is right and log π wrong; on the rows under test it is the other way round.
    reward = np.where(validation[:, None], truth, -truth)
    sft = np.where(validation[:, None], -100 * truth, 100 * truth)
    answers = Answers(
        {"sft": sft, "aligned": sft + reward},
        {"popularity": np.zeros((4, 3)), "mean rating": truth},
        kinds > 0,
        kinds < 0,
        ["a", "b", "c", "d"],
        validation,
        ~validation,
    )
    found = measure(answers, "sft", {"aligned": "sft"}, seed=0)
    assert found.weights == {
        "aligned: log π + λ·reward": math.inf,
        "aligned: mean rating + λ·reward": pytest.approx(1.0),
    }
    auc = {name: of["auc"].mean for name, of in found.metrics.items()}
    assert auc["sft: log π"] == auc["aligned: log π"] == 1.0
    assert auc["aligned: reward"] == auc["aligned: log π + λ·reward"] == 0.0
    assert auc["popularity"] == 0.5
    without = replace(answers, validation=np.zeros(4, bool))
    assert measure(without, "sft", {"aligned": "sft"}, seed=0).weights == {}


def test_an_alignment_s_reference_is_what_it_went_on_from():
    kinds = np.array([[1, -1], [1, -1]])
    logps = {"sft": np.zeros((2, 2)), "one": 3.0 * kinds, "two": 2.0 * kinds}
    answers = Answers(logps, {}, kinds > 0, kinds < 0, ["a", "b"], np.zeros(2, bool), np.ones(2, bool))
    found = measure(answers, "sft", {"one": "sft", "two": "one"}, seed=0).metrics
    assert [found[f"{name}: reward"]["auc"].mean for name in ("one", "two")] == [1.0, 0.0]
