"""The table of all systems: every ranker once, its kind, differences to S-DPO, the audit's verdict first."""

from shutil import copytree

import pytest
import yaml

from baselines import UNDATED_BASELINES
from prefrec.evaluation import Interval, PairedDifference, evaluate_predictions, read_predictions
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import REFERENCE_RANKERS, Recipe
from prefrec_lab.studies.carry_out import analyse_runs, base_recipe, carry_out
from prefrec_lab.studies.measure import Measured
from prefrec_lab.studies.table import TABLE, built_on, notes_of, ranking_facts, seconds_of
from sealed import write_metrics
from verdicts import NONE


@pytest.fixture(scope="module")
def summary(base, place):
    every = {"zero_shot": True, "references": list(REFERENCE_RANKERS)}
    raw = base.model_dump(mode="json")
    return carry_out(TABLE, Recipe.model_validate(raw | {"evaluate": raw["evaluate"] | every}), [0], place)


def test_every_ranker_is_a_row_with_its_kind(summary):
    kinds = {r["variant"]: r["kind"] for r in summary["tables"]["table"]}
    assert kinds == {
        **dict.fromkeys(UNDATED_BASELINES, "reference"),
        **dict.fromkeys(("zero-shot", "sft", "s-dpo"), "language model"),
    }
    against = {r["variant"]: r["against"] for r in summary["tables"]["table"]}
    assert against.pop("s-dpo") is None
    assert set(against.values()) == {"s-dpo"}


def test_training_is_what_all_stages_took(summary, place, tmp_path):
    """Of the main line; of other systems what their own stage says, where something is trained."""
    folder = tmp_path / "run"
    copytree(place / "runs" / "table-seed-0", folder)
    raw = yaml.safe_load((folder / "recipe.yaml").read_text())
    raw |= {
        "rankers": [
            {"kind": "sequential"},
            {"kind": "tallrec"},
            {"kind": "retrieve-then-rank", "ranker": "s-dpo"},
            {"kind": "blend"},
        ]
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    for part, seconds in (("sft", 100), ("align/s-dpo", 40), ("rankers/SASRec", 7), ("rankers/TALLRec", 9)):
        write_json(folder / part / "stage.json", {"finished": True, "seconds": seconds})
    for name in ("retrieve-then-rank", "blend"):
        write_json(folder / "rankers" / name / "stage.json", {"finished": True, "seconds": 50})
    run = open_run(folder)
    names = ("sft", "s-dpo", "SASRec", "TALLRec", "retrieve-then-rank", "blend", "zero-shot", "popularity")
    assert [seconds_of(run, n) for n in names] == [100, 140, 7, 9, None, None, None, None]


def test_what_a_system_adds_to_the_one_it_builds_on(summary, place):
    rows = summary["tables"]["gains"]
    assert {(r["variant"], r["against"]) for r in rows} == {("sft", "zero-shot"), ("s-dpo", "sft")}
    (gain,) = [r for r in rows if r["variant"] == "s-dpo" and r["quantity"] == "hr@1"]
    frame = open_run(place / "runs" / "table-seed-0").predictions()
    hits = {n: (frame.filter(ranker=n).sort("row")["rank"] == 1).mean() for n in ("sft", "s-dpo")}
    assert gain["mean"] == pytest.approx(hits["s-dpo"] - hits["sft"])
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert built_on(base_recipe(TABLE)) == {
        "dpo": "sft",
        "s-dpo": "sft",
        "LLaRA": "sft",
        "LLaRA-S-DPO": "LLaRA",
        "TALLRec": "sft",
    }


def test_the_whole_catalogue_is_a_table_of_its_own(summary, place, tmp_path):
    """From the metrics of the run, with differences to its best reference row."""
    assert "full-catalogue" not in summary["tables"]
    folder = tmp_path / "run"
    copytree(place / "runs" / "table-seed-0", folder)
    metrics = read_json(folder / "metrics.json")
    predictions = read_predictions(folder / "predictions.parquet")
    pairs = [("s-dpo", "sft"), ("s-dpo", "popularity")]
    full = evaluate_predictions(predictions, ks=[10], compare=pairs, audit=NONE)
    told = metrics | {"full_catalogue": full.to_json() | {"best_reference": "popularity"}}
    write_metrics(folder, told)
    rows = analyse_runs(TABLE, [folder], tmp_path)["tables"]["full-catalogue"]
    assert {r["quantity"] for r in rows} == {"hr@10", "ndcg@10"}
    (row,) = [r for r in rows if (r["variant"], r["quantity"]) == ("s-dpo", "ndcg@10")]
    assert row["mean"] == pytest.approx(full.metrics["s-dpo"]["ndcg@10"].mean)
    assert row["against"] == "popularity"
    assert row["difference"] == pytest.approx(row["mean"] - full.metrics["popularity"]["ndcg@10"].mean)


def test_what_the_systems_do_not_share_is_told(summary):
    told = notes_of(base_recipe(TABLE))
    for note in (
        "SFT, DPO, S-DPO have read whole histories, of which every title was a target.",
        "LLaRA, TALLRec start from SFT and learn from ranking questions.",
        "Sequential models (GRU4Rec, Caser, SASRec, MoRec) see all training interactions.",
    ):
        assert note in told
        assert note not in summary["notes"]  # its recipe has none of these
    assert len(summary["notes"]) == 3
    assert "the system; rows" not in summary["varied"]


def test_the_verdict_stands_above(summary, place):
    assert summary["facts"][0].startswith("Audit: ")
    assert [r["shortcut"] for r in summary["tables"]["audit"]][:2] == ["random", "popularity"]
    page = (place / "table" / "page.html").read_text(encoding="utf-8")
    assert page.index(summary["facts"][0]) < page.index("co-occurrence")


def test_a_run_that_there_is(summary, place, tmp_path):
    again = analyse_runs(TABLE, [place / "runs" / "table-seed-0"], tmp_path)
    assert again["tables"] == summary["tables"]


def test_systems_are_sorted_by_what_their_intervals_say():
    def gap(mean):
        return PairedDifference(mean, mean - 0.05, mean + 0.05, 100, 100, 0.5)

    means = {"s-dpo": 0.4, "a": 0.5, "b": 0.42, "c": 0.2}
    intervals = {n: {"hr@1": Interval(m, m - 0.1, m + 0.1, 100, 100)} for n, m in means.items()}
    gaps = {n: {"hr@1": gap(m - 0.4)} for n, m in means.items() if n != "s-dpo"}
    found = ranking_facts(Measured(intervals, gaps, {}, "s-dpo", 100, 100))
    assert found == [
        "HR@1: the highest is a, 0.500 [0.400, 0.600].",
        "HR@1: S-DPO (0.400 [0.300, 0.500]) is below a; above c; not told apart from b.",
    ]


def test_the_shipped_recipe_has_every_trained_system():
    shipped = base_recipe(TABLE)
    names = [*shipped.lm_rankers, *(r.name for r in shipped.rankers)]
    assert names == [
        *("sft", "dpo", "s-dpo", "GRU4Rec", "Caser", "SASRec"),
        *("MoRec", "LLaRA", "LLaRA-S-DPO", "TALLRec"),
    ]
    assert shipped.evaluate.rows is None
