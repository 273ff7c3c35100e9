"""Liked over disliked, at the end of a run: what is asked, what is measured, what the report and the command say."""

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from command import prefrec
from prefrec.data import RankingExample
from prefrec.evaluation import read_predictions
from prefrec.evaluation.preferences import Preferences
from prefrec.pipeline.measure_preferences import SWAPS, Answers, measure, run_preferences, swapped_histories
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.runs.results import PREFERENCES
from tiny_run import write_recipe


@pytest.fixture(scope="module")
def finished(rated_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rated"
    run_recipe(rated_recipe, folder)
    return folder


def judged(folder, name):
    """(user, [(logp, rating), …]) of a model's questions; a user's later rows have other users' histories."""
    seen, held_out = set(), pl.read_parquet(folder / "data" / "held_out.parquet")
    ratings = {(u, i): r for u, i, r in held_out.select("user_id", "item_id", "rating").iter_rows()}
    for row in read_predictions(folder / "preferences" / f"{name}.parquet").iter_rows(named=True):
        user = row["user_id"]
        if user not in seen:
            yield user, [(s, ratings[user, i]) for i, s in zip(row["candidates"], row["scores"], strict=True)]
        seen.add(user)


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
            told = list(zip(scores, ratings, strict=True))
            aucs[name].append(
                np.mean([(a > b) + 0.5 * (a == b) for a, r in told for b, q in told if r == 5.0 and q <= 2.0])
            )
    assert found.users == len(aucs["sft: log π"]) > 10
    want = {name: np.mean(values) for name, values in aucs.items()}
    assert {name: found.metrics[name]["auc"].mean for name in aucs} == pytest.approx(want)
    page = (finished / "report.html").read_text()
    assert 'id="preferences"' in page
    assert "s-dpo: user-centred item mean + λ·reward" in page
    assert set(found.weights) == {"s-dpo: user-centred item mean + λ·reward"}
    assert found.chosen_on == len(policy) - found.users > 0
    pairs = {(d.ranker, d.against) for d in found.differences}
    assert {("s-dpo: reward", "sft: log π"), ("s-dpo: reward", "s-dpo: reward, histories swapped")} <= pairs
    assert ("s-dpo: user-centred item mean + λ·reward", "user-centred item mean") in pairs
    # Here an item's number is its rating, so nobody likes what another one dislikes.
    assert set(found.metrics["s-dpo: reward − its mean over users"]) == {"auc", "ndcg"}


def test_the_command_prints_them_and_asks_nothing_twice(finished, rated_recipe, tmp_path):
    path = write_recipe(tmp_path, rated_recipe.model_dump(mode="json"))
    done = prefrec("run", path, "--out", finished)
    assert done.code == 0
    assert "liked over disliked items, " in done.out
    assert "s-dpo: reward" in done.out
    assert "scoring" not in done.err
    told = json.loads(prefrec("run", path, "--out", finished, "--json").out)
    assert told["preferences"]["users"] == json.loads((finished / PREFERENCES).read_text())["users"]


def test_what_is_not_asked_for_any_more_goes(rated_recipe, tmp_path):
    raw = rated_recipe.model_dump(mode="json") | {"sft": None}
    raw["align"][0] |= {"rows": 8}
    raw["evaluate"] |= {"full_rows": 0, "generate_rows": 0}
    run_recipe(Recipe.model_validate(raw), tmp_path)
    found = json.loads((tmp_path / PREFERENCES).read_text())
    assert "zero-shot: log π" in found["metrics"]  # without SFT the base is the reference
    run_recipe(Recipe.model_validate(raw | {"align": []}), tmp_path)
    assert not (tmp_path / PREFERENCES).exists()
    assert 'id="preferences"' not in (tmp_path / "report.html").read_text()


def test_without_interactions_after_the_training_part_it_is_said(rated_recipe, rated, tmp_path, capsys):
    assert run_preferences(rated_recipe, replace(rated, held_out_interactions=None), [], tmp_path) is None
    told = "preferences: not measured, because no test user has both liked and disliked items"
    assert told in capsys.readouterr().err
    assert run_preferences(rated_recipe.model_copy(update={"align": []}), rated, [], tmp_path) is None
    assert capsys.readouterr().err == ""


def answers(logps, kinds, validation=None, references=None, swapped=None, items=None) -> Answers:
    """Answers of which rows that are not validation rows are under test."""
    rows = len(kinds)
    validation = np.zeros(rows, bool) if validation is None else validation
    blind = {name: np.zeros(kinds.shape) for name in ("popularity", "mean rating", "user-centred item mean")}
    items = items or [[f"i{c}" for c in range(kinds.shape[1])]] * rows
    users = [f"u{n}" for n in range(rows)]
    both = kinds > 0, kinds < 0
    return Answers(logps, blind | (references or {}), swapped or {}, *both, items, users, validation, ~validation)


def test_weights_are_chosen_on_validation_questions_alone():
    kinds = np.array([[1, -1, 0], [1, 1, -1], [-1, 1, 0], [-1, -1, 1]])
    truth, validation = kinds.astype(float), np.array([True, True, False, False])
    # On validation rows the reward is right; on the rows under test it is wrong.
    reward = np.where(validation[:, None], truth, -truth)
    sft = np.where(validation[:, None], -100 * truth, 100 * truth)
    asked = answers({"sft": sft, "aligned": sft + reward}, kinds, validation, {"user-centred item mean": truth})
    found = measure(asked, "sft", {"aligned": "sft"})
    assert found.weights == {"aligned: user-centred item mean + λ·reward": pytest.approx(1.0)}
    auc = {name: of["auc"].mean for name, of in found.metrics.items()}
    assert auc["sft: log π"] == auc["aligned: log π"] == 1.0
    assert (auc["aligned: reward"], auc["popularity"]) == (0.0, 0.5)
    useless = replace(asked, references=asked.references | {"user-centred item mean": -truth})
    assert list(measure(useless, "sft", {"aligned": "sft"}).weights.values()) == [math.inf]
    assert measure(replace(asked, validation=np.zeros(4, bool)), "sft", {"aligned": "sft"}).weights == {}


def test_an_alignment_s_reference_is_what_it_went_on_from():
    kinds = np.array([[1, -1], [1, -1]])
    logps = {"sft": np.zeros((2, 2)), "one": 3.0 * kinds, "two": 2.0 * kinds}
    found = measure(answers(logps, kinds), "sft", {"one": "sft", "two": "one"})
    assert [found.metrics[f"{name}: reward"]["auc"].mean for name in ("one", "two")] == [1.0, 0.0]
    assert ("one: reward", "two: reward") in {(d.ranker, d.against) for d in found.differences}


def test_a_reward_is_measured_only_against_a_model_that_is_asked():
    kinds = np.array([[1, -1], [1, -1]])
    logps = {"sft": np.zeros((2, 2)), "one": 3.0 * kinds, "two": 2.0 * kinds}
    swapped = {name: np.zeros((1, 2, 2)) for name in logps}
    asked = answers(logps, kinds, np.array([True, False]), swapped={n: s[:, :1] for n, s in swapped.items()})
    found = measure(asked, "sft", {"one": None, "two": "sft"})
    assert [name for name in found.metrics if name.startswith("one")] == ["one: log π"]
    assert "two: reward" in found.metrics
    assert [*found.weights] == ["two: user-centred item mean + λ·reward"]
    assert ("one: log π", "sft: log π") in {(d.ranker, d.against) for d in found.differences}
    assert "one: log π" in measure(asked, "sft", {"one": None}).metrics


def test_an_item_s_worth_for_all_users_stays_under_swapped_histories_and_taste_does_not():
    """Two users of each taste want the contrary. A blind reward and one of taste alone, each by itself."""
    kinds = np.array([[1, -1], [-1, 1], [1, -1], [-1, 1], [1, -1]])
    blind, taste = np.tile([1.0, 0.0], (5, 1)), kinds.astype(float)
    zeros = np.zeros((4, 5, 2))
    # The k-th history is that of the user k rows further on.
    others = np.stack([np.roll(taste, -k, axis=0) for k in range(1, 5)])
    swapped = {"sft": zeros, "blind": zeros + blind, "taste": others}
    asked = answers({"sft": np.zeros((5, 2)), "blind": blind, "taste": taste}, kinds, swapped=swapped)
    told = measure(asked, "sft", {"blind": "sft", "taste": "sft"})
    found, swapped, personal = (
        [told.metrics[f"{name}: {kind}"] for name in ("blind", "taste")]
        for kind in ("reward", "reward, histories swapped", "reward − its mean over users")
    )
    assert [m["auc"].mean for m in found] == [0.6, 1.0]
    assert [m["auc"].mean for m in swapped] == pytest.approx([0.6, 8 / 20])  # 8 of 20 pairs of users agree
    assert [m["auc"].mean for m in personal] == [0.5, 1.0]
    assert [m["item_auc"].mean for m in personal] == [0.5, 1.0]


def test_swapped_histories_are_those_of_others_without_the_question_s_items():
    rows = [RankingExample(f"u{n}", (f"h{n}", "i0"), (f"i{n}", "x"), "x") for n in range(5)]
    swapped = swapped_histories(rows)
    assert len(swapped) == 4 * 5  # each of the other four once
    for n, row in enumerate(rows):
        mine = swapped[n::5]
        assert {(e.user_id, e.candidates) for e in mine} == {(row.user_id, row.candidates)}
        assert sorted(e.history[0] for e in mine) == [f"h{o}" for o in range(5) if o != n]
        assert {e.history[1:] for e in mine} == {() if n == 0 else ("i0",)}
    assert (len(swapped_histories(rows * 10)), swapped_histories(rows[:1])) == (SWAPS * 50, [])
