"""The table of all systems: every ranker once, its kind, differences to S-DPO, the audit's verdict first."""

from shutil import copytree

import numpy as np
import pytest

from baselines import UNDATED_BASELINES
from prefrec.evaluation import evaluate_predictions, read_predictions
from prefrec.files import read_json
from prefrec.pipeline.opened import open_run
from prefrec.rankers.baselines import BASELINES, PopularityRanker
from prefrec.recipe import Recipe
from prefrec_lab.studies.table import TABLE, built_on
from prefrec_lab.study_tools.carry_out import analyse_runs, base_recipe, carry_out
from sealed import write_metrics
from verdicts import NONE


@pytest.fixture(scope="module")
def summary(base, place):
    every, raw = {"zero_shot": True, "baselines": list(BASELINES)}, base.model_dump(mode="json")
    return carry_out(TABLE, Recipe.model_validate(raw | {"evaluate": raw["evaluate"] | every}), [0], place)


def test_every_ranker_is_a_row_with_its_kind(summary):
    kinds = {r["variant"]: r["kind"] for r in summary["tables"]["table"]}
    told = dict.fromkeys(("zero-shot", "sft", "s-dpo"), "language model")
    assert kinds == dict.fromkeys(UNDATED_BASELINES, "reference") | told
    against = {r["variant"]: r["against"] for r in summary["tables"]["table"]}
    assert against.pop("s-dpo") is None
    assert set(against.values()) == {"s-dpo"}


def test_what_a_system_adds_to_the_one_it_builds_on(summary, place):
    rows = summary["tables"]["gains"]
    assert {(r["variant"], r["against"]) for r in rows} == {("sft", "zero-shot"), ("s-dpo", "sft")}
    (gain,) = [r for r in rows if r["variant"] == "s-dpo" and r["quantity"] == "hr@1"]
    frame = open_run(place / "runs" / "table-seed-0").predictions()
    hits = {n: (frame.filter(ranker=n).sort("row")["rank"] == 1).mean() for n in ("sft", "s-dpo")}
    assert gain["mean"] == pytest.approx(hits["s-dpo"] - hits["sft"])
    assert gain["low"] <= gain["mean"] <= gain["high"]
    built = dict.fromkeys(("dpo", "s-dpo", "LLaRA", "TALLRec"), "sft") | {"LLaRA-S-DPO": "LLaRA"}
    assert built_on(base_recipe(TABLE)) == built


def test_an_alignment_builds_on_the_one_that_it_starts_from():
    raw = base_recipe(TABLE).model_dump(mode="json")
    raw["align"][1]["start"] = "dpo"
    built = built_on(Recipe.model_validate(raw))
    assert (built["dpo"], built["s-dpo"]) == ("sft", "dpo")


def test_baselines_count_what_the_systems_have_learnt(summary, place):
    run = open_run(place / "runs" / "table-seed-0")
    assert not run.data.validation_interactions.is_empty()
    assert {*run.results.evaluation.logs.values()} == {"training"}
    assert "All rankers were trained on the same log: training." in summary["notes"]
    answers, counted = run.predictions().filter(ranker="popularity").sort("row"), {}
    for log in ("validation", "test"):
        ranker = PopularityRanker.fit(run.data.known_interactions(log))
        counted[log] = ranker.score(run.data.examples("test", len(answers)))
    np.testing.assert_allclose(answers["scores"].to_list(), counted["validation"])
    assert not np.allclose(counted["validation"], counted["test"])


def test_the_whole_catalogue_is_a_table_of_its_own(summary, place, tmp_path):
    assert "full-catalogue" not in summary["tables"]
    folder = tmp_path / "run"
    copytree(place / "runs" / "table-seed-0", folder)
    metrics = read_json(folder / "metrics.json")
    predictions = read_predictions(folder / "predictions.parquet")
    full = evaluate_predictions(predictions, ks=[10], compare=[("s-dpo", "sft"), ("s-dpo", "popularity")], audit=NONE)
    write_metrics(folder, metrics | {"full_catalogue": full.to_json() | {"best_reference": "popularity"}})
    rows = analyse_runs(TABLE, [folder], tmp_path)["tables"]["full-catalogue"]
    assert {r["quantity"] for r in rows} == {"hr@10", "ndcg@10"}
    (row,) = [r for r in rows if (r["variant"], r["quantity"]) == ("s-dpo", "ndcg@10")]
    assert row["mean"] == pytest.approx(full.metrics["s-dpo"]["ndcg@10"].mean)
    assert row["against"] == "popularity"
    assert row["difference"] == pytest.approx(row["mean"] - full.metrics["popularity"]["ndcg@10"].mean)
