"""Trial E3: its script ranks the right examples, and its mixtures do not learn from whom they rank."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from prefrec.recipe import checked_recipe
from prefrec_lab.results import markdown
from prefrec_lab.trials import liked_items
from tiny_run import write_rated_log

ROOT = Path(__file__).parents[3]
TRIAL = yaml.safe_load(liked_items.TRIAL.read_text(encoding="utf-8"))


def test_the_declared_recipe_is_one_and_its_differences_are_of_its_scores():
    raw = yaml.safe_load((ROOT / "recipes/movielens-100k-ratings.yaml").read_text(encoding="utf-8"))
    for section, change in TRIAL["recipe"].items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    made = checked_recipe(raw)
    names = [a.name for a in made.align]
    equal = ["loss", "name", "sampled_negatives"]
    assert len({a.model_dump_json(exclude=set(equal)) for a in made.align}) == 1, (
        "arms differ in the loss or negatives"
    )
    scores = {"sft", "mean", *names, *(f"{name} reward" for name in names)}
    assert {part for parts in TRIAL["mixtures"].values() for part in parts} <= scores
    assert {name for pair in TRIAL["differences"] for name in pair} <= scores | {*TRIAL["mixtures"]}


@pytest.fixture(scope="module")
def trial(recipe, tmp_path_factory) -> tuple[Path, Path, dict]:
    """A log of 40 users with random ratings, its recipe, and the trial with two arms."""
    folder = tmp_path_factory.mktemp("liked")
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "dropout": 0.1}}
    raw["data"] |= {"interactions": str(write_rated_log(folder)), "split": "time-share"}
    raw |= {"lora": None, "sft": raw["sft"] | {"epochs": 1, "rows": 8}, "align": []}
    raw["evaluate"] |= {"generate_rows": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    few = {"rows": 8, "learning_rate": 5e-3}
    arms = [arm | few for arm in TRIAL["recipe"]["align"]]
    return folder, folder / "recipe.yaml", TRIAL | {"examples": 30, "recipe": TRIAL["recipe"] | {"align": arms}}


@pytest.fixture(scope="module")
def run(trial):
    folder, path, declared = trial
    return liked_items.make_run(path, folder / "runs/seed-0", declared["recipe"], 0, [])


def test_examples_are_those_whose_target_the_user_liked(run):
    held_out = run.data.held_out_interactions["user_id", "item_id", "rating"]
    ratings = {(user, item): rating for user, item, rating in held_out.iter_rows()}
    liked = liked_items.rated(run.data, "test", 5, np.inf, 10_000)
    expected = [e for e in run.data.test if ratings[e.user_id, e.target] == 5]
    assert liked == expected
    assert len({e.user_id for e in liked}) < len(liked), "all of a user's later items are examples"
    some = liked_items.rated(run.data, "test", 5, np.inf, 7)
    assert [some[0], some[-1], len(some)] == [expected[0], expected[-1], 7]


def test_gains_are_those_of_a_slow_ranking(run, trial):
    rows = liked_items.rated(run.data, "test", 5, np.inf, 10)
    one = liked_items.asked(run, ["sft", "s-dpo-rated"], "test", rows)
    gains = one.gains(one.scores["s-dpo-rated"])
    reward = one.scores["s-dpo-rated reward"]
    for n, (example, row) in enumerate(zip(rows, one.examples, strict=True)):
        assert row.candidates[0] == example.target
        assert not {*row.candidates} & {*example.history}
        scores = one.scores["s-dpo-rated"][n][: len(row.candidates)]
        place = 1 + sum(score > scores[row.candidates.index(example.target)] for score in scores)
        assert gains[n] == pytest.approx(1 / np.log2(1 + place) if place <= 10 else 0)
        width = len(row.candidates)
        assert reward[n, :width] == pytest.approx(scores - one.scores["sft"][n, :width])
        assert np.isneginf(reward[n, width:]).all()


def test_a_mixture_of_validation_examples_is_learnt_on_other_users(run):
    rows = liked_items.rated(run.data, "validation", 5, np.inf, 30)
    one = liked_items.asked(run, ["sft", "s-dpo-rated"], "validation", rows)
    before = liked_items.mixed(one, one, ["sft", "mean"], is_crossed=True)
    # The scores of one half of the users change. Their weights are those of the other half, so these stay.
    half = liked_items.folds_of([e.user_id for e in one.examples], liked_items.HALVES)
    changed = {name: scores.copy() for name, scores in one.scores.items()}
    changed["mean"][half == 0] *= -3
    after = liked_items.mixed(liked_items.Asked(one.examples, changed), one, ["sft", "mean"], is_crossed=True)
    assert after[half == 0] == pytest.approx(before[half == 0])
    assert not np.allclose(np.nan_to_num(after[half == 1], neginf=0), np.nan_to_num(before[half == 1], neginf=0))


def test_validation_prints_and_test_writes(run, trial, monkeypatch, tmp_path, capsys):
    _, path, declared = trial
    (tmp_path / "e3.yaml").write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(liked_items, "TRIAL", tmp_path / "e3.yaml")
    monkeypatch.setattr(liked_items, "RESULT", tmp_path / "67.json")
    monkeypatch.setattr("prefrec_lab.trials.shared.ANSWERS", tmp_path)
    command = ["liked_items.py", str(path), str(run.folder), "--split"]
    monkeypatch.setattr(sys, "argv", [*command, "validation"])
    liked_items.main()
    assert "sft + mean + reward − sft + mean + SFT on liked" in capsys.readouterr().out
    assert not (tmp_path / "67.json").exists()
    monkeypatch.setattr(sys, "argv", [*command, "test"])
    liked_items.main()
    means, differences = json.loads((tmp_path / "67.json").read_text(encoding="utf-8"))["tables"]
    arms = [arm["name"] for arm in declared["recipe"]["align"]]
    rankers = ["mean", "popularity", "window co-occurrence", "sft", *arms, *declared["mixtures"]]
    assert [row[0] for row in means["rows"]] == rankers
    assert [row[0] for row in differences["rows"]] == [" − ".join(pair) for pair in declared["differences"]]
    assert markdown(means) in capsys.readouterr().out
    kept = pl.read_parquet(tmp_path / "e3-test-0.parquet")
    assert set(kept["kind"]) == {"liked", "disliked"}
    # A second seed with twice the gains: tables show the mean of both.
    kept.with_columns(pl.col("ndcg@10") * 2).write_parquet(tmp_path / "e3-test-1.parquet")
    liked_items.main()
    result = json.loads((tmp_path / "67.json").read_text(encoding="utf-8"))
    assert "; 2 seeds; " in result["n"]
    for before, after in zip(means["rows"], result["tables"][0]["rows"], strict=True):
        assert float(after[1]) == pytest.approx(1.5 * float(before[1]), abs=2e-4)
