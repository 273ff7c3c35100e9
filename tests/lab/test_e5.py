"""Trial E5: its declared plan can be read, and its recipe makes every arm in one run."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from prefrec.errors import DataError
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe, load_recipe
from prefrec_lab.protocol import read_trial

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import full_ranking
import rank_tables

ROOT = full_ranking.ROOT
PLAN = ROOT / "lab/protocol/e5.yaml"
TRIAL = read_trial(PLAN)
ALIGNED = ["s-dpo", "sft-more", "joint"]


def _raw(name: str) -> dict:
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_plan_says_what_was_fixed_before_its_runs():
    assert (TRIAL.metric, TRIAL.equivalence, TRIAL.level, TRIAL.evaluations) == ("ndcg@10", 0.03, 0.05, 1)
    assert TRIAL.families[0].ranker == "with-reward"
    assert TRIAL.families[0].against == "with-second-model"
    trials = {"with-reward", "with-joint", "tower-reward"}
    assert {f.ranker for f in TRIAL.families} == trials
    assert {f.against for f in TRIAL.families} == {*TRIAL.arms} - {*trials, "counts"}


@pytest.mark.parametrize("change", [{"arms": {"counts": "?"}}, {"recipe": {}}, {"training_seeds": [0]}, {"sets": []}])
def test_a_plan_without_its_arms_or_seeds_is_refused(tmp_path, change):
    (tmp_path / "e5.yaml").write_text(yaml.safe_dump(yaml.safe_load(PLAN.read_text(encoding="utf-8")) | change))
    with pytest.raises(DataError, match=r"e5.yaml: not the rules of a trial"):
        read_trial(tmp_path / "e5.yaml")


@pytest.mark.parametrize("name", ["amazon-office", "amazon-book", "goodreads", "lastfm", "movielens-100k-items"])
def test_the_arms_fit_the_recipes_of_the_data_sets(name):
    made = checked_recipe(TRIAL.run_recipe(_raw(name), 2))
    assert (made.seed, made.model, made.data.source) == (
        2,
        load_recipe(ROOT / "recipes" / f"{name}.yaml").model,
        made.data.source,
    )
    assert [a.name for a in made.align] == ALIGNED
    poor = checked_recipe(TRIAL.run_recipe(_raw(name), 0, is_control=True))
    assert (poor.sft.rows, poor.sft.learning_rate) == (300, made.sft.learning_rate)
    assert (made.evaluate.split, poor.evaluate.split) == ("test", "validation")


def test_all_alignments_have_the_same_rows_steps_and_rate():
    align = checked_recipe(TRIAL.run_recipe(_raw("amazon-office"), 0)).align
    shared = ("rows", "skip_rows", "epochs", "learning_rate", "global_batch_size", "beta", "latest_per_user")
    assert len({tuple(getattr(a, field) for field in shared) for a in align}) == 1
    mined = {a.name: (a.negatives_from, a.miner) for a in align}
    assert mined == {"s-dpo": ("ranker", "counts"), "sft-more": ("uniform", None), "joint": ("uniform", None)}
    assert {a.name: a.reference for a in align} == {"s-dpo": None, "sft-more": None, "joint": "counts"}


def test_the_second_tower_has_another_seed_in_each_run():
    seeds = [
        {r.seed for r in checked_recipe(TRIAL.run_recipe(_raw("lastfm"), n)).rankers if r.kind == "title-tower"}
        for n in (0, 2)
    ]
    assert seeds == [{None, 100}, {None, 102}]


def test_one_run_makes_all_arms_whose_ranks_can_be_kept(recipe, tmp_path, monkeypatch):
    raw = TRIAL.run_recipe(recipe.model_dump(mode="json"), 0)
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf"}}
    raw["sft"] |= {"rows": None, "epochs": 1, "learning_rate": 1e-3}
    raw |= {"lora": None, "evaluate": raw["evaluate"] | {"references": ["random"], "rows": 8, "ks": [1, 10]}}
    few = {"num_negatives": 3, "rows": 16, "global_batch_size": 8, "per_device_batch_size": 8}
    raw["align"] = [a | few for a in raw["align"]]
    small_tower = {"width": 4, "epochs": 1}
    changes = {"title-tower": small_tower, "sequential": {"hidden_size": 8, "epochs": 1, "grid": {}}}
    for ranker in raw["rankers"]:
        ranker.update(changes.get(ranker["kind"], {}))
        if ranker["kind"] == "title-tower" and ranker.get("vectors") != "random":
            ranker["vectors"] = "tfidf"
    run_recipe(Recipe.model_validate(raw), tmp_path)
    full = json.loads((tmp_path / "metrics.json").read_text())["full_catalogue"]
    assert {*TRIAL.arms, "title-tower", "sft", *ALIGNED} <= full["metrics"].keys()
    assert full["logs"]["with-reward"] == "training and validation"
    keys = {open_run(tmp_path).stage(name).key for name in TRIAL.arms}
    assert len(keys) == len(TRIAL.arms)
    for module in (full_ranking, rank_tables):
        monkeypatch.setattr(module, "RANKS", tmp_path / "ranks")
    full_ranking.measure("movielens-100k", tmp_path)
    (kept,) = rank_tables.read_all()
    assert {*TRIAL.arms, "title-tower-random", "SASRec"} <= kept.each.keys()
    assert kept.mean("with-reward") == pytest.approx(full["metrics"]["with-reward"]["ndcg@10"]["mean"])
    assert kept.model_pair == rank_tables.WITH_MODEL
    assert rank_tables.logs_of(kept).keys() == {"training and validation"}
    assert kept.facts["doses"]["s-dpo"]["minutes"] > 0
    assert 0 < kept.facts["doses"]["s-dpo"]["KL"] < 10
    assert (kept.facts["baselines"], kept.baseline) == ([], "SASRec")
