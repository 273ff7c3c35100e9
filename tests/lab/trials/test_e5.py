"""Trial E5: its declared plan can be read, and the ranks of a run are kept for the table."""

import json

import pytest
import yaml

from prefrec.errors import DataError
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec_lab.protocol import read_trial
from prefrec_lab.trials import full_ranking, rank_tables

ROOT = full_ranking.ROOT
PLAN = ROOT / "lab/protocol/e5.yaml"
TRIAL = read_trial(PLAN)


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


def test_ranks_of_a_run_are_kept_with_what_its_alignment_did(recipe, tmp_path, monkeypatch):
    counts = ["window co-occurrence", "transition graph"]
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf"}}
    raw["sft"] |= {"rows": None, "epochs": 1, "learning_rate": 1e-3}
    raw |= {"lora": None, "refit": True}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0, "baselines": ["random"], "rows": 8, "ks": [1, 10]}
    few = {"num_negatives": 3, "rows": 16, "global_batch_size": 8, "per_device_batch_size": 8}
    raw["align"] = [few | {"name": "s-dpo", "negatives_from": "uniform", "epochs": 1, "eval_rows": 8}]
    raw["rankers"] = [
        {"kind": "sequential", "model": "SASRec", "hidden_size": 8, "epochs": 1},
        {"kind": "blend", "name": "sequential-tower", "parts": [*counts, "SASRec"]},
        {"kind": "blend", "name": "sequential-tower-sft", "parts": [*counts, "SASRec", "sft"]},
    ]
    run_recipe(Recipe.model_validate(raw), tmp_path)
    full = json.loads((tmp_path / "metrics.json").read_text())["full_catalogue"]
    for module in (full_ranking, rank_tables):
        monkeypatch.setattr(module, "RANKS", tmp_path / "ranks")
    full_ranking.measure("movielens-100k", tmp_path)
    (kept,) = rank_tables.read_all()
    best = "sequential-tower-sft"
    assert {best, "sequential-tower", "SASRec", "sft", "s-dpo"} <= kept.each.keys()
    assert kept.mean(best) == pytest.approx(full["metrics"][best]["ndcg@10"]["mean"])
    assert kept.model_pair == rank_tables.WITH_MODEL
    assert rank_tables.logs_of(kept).keys() == {"training and validation"}
    assert kept.facts["doses"]["s-dpo"]["minutes"] > 0
    assert 0 < kept.facts["doses"]["s-dpo"]["KL"] < 10
    assert (kept.facts["baselines"], kept.baseline) == ([], "SASRec")
