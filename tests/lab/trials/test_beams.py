"""Trial E2: its arms differ as declared, its ranks are those of exact ranking, and its script writes its tables."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import yaml

from prefrec.data.seen import seen_items
from prefrec.rankers import CatalogueRanker
from prefrec.recipe import checked_recipe
from prefrec_lab.trials import beams
from prefrec_lab.trials.beams import EXACT, chosen_arms, gains, hits, training_examples
from prefrec_lab.trials.shared import Answers
from tiny_run import write_rated_log

TRIAL = yaml.safe_load(beams.TRIAL.read_text(encoding="utf-8"))


def test_the_declared_recipe_is_one_and_its_differences_are_of_its_arms():
    made = checked_recipe({**TRIAL["run"], "align": []})
    assert made.model.objective == "tokens"
    arms = {*TRIAL["arms"]}
    assert {name for pair in TRIAL["differences"] for name in pair} <= arms
    assert {arm["rate_of"] for arm in TRIAL["arms"].values() if "rate_of" in arm} <= arms
    assert TRIAL["width"] in TRIAL["widths"]
    assert TRIAL["negatives"] <= TRIAL["width"]


@pytest.fixture(scope="module")
def trial(recipe, tmp_path_factory) -> dict:
    """The trial on a log of 40 users, with a tiny model and few examples."""
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"templates": ["history"], "objective": "tokens"}
    log = str(write_rated_log(tmp_path_factory.mktemp("beams")))
    raw["data"] |= {"interactions": log, "split": "user", "windows": "all"}
    raw |= {"lora": None, "sft": raw["sft"] | {"epochs": 1, "rows": 8}, "align": []}
    raw["evaluate"] |= {"generate_rows": 0, "full_rows": 0}
    few = {"examples": 6, "validation": 5, "test": 8, "negatives": 2, "width": 4, "widths": [1, 4, 8], "found": 8}
    return TRIAL | few | {"run": raw, "trainer": TRIAL["trainer"] | {"global_batch_size": 8}}


@pytest.fixture(scope="module")
def run(trial, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "seed-0"
    beams.run_changed(beams.TRIAL, {**trial["run"], "seed": 0}, folder, [], until="sft")
    return beams.open_run(folder)


def test_negatives_are_unseen_and_those_of_their_kind(run, trial):
    of_kind = {
        kind: training_examples(run, trial, {"negatives": kind}) for kind in (None, "uniform", "beams", "hardest")
    }
    found = beams.with_beams(run, [], trial["width"])
    log = run.data.train_interactions.group_by("user_id").agg("item_id")
    known = {user: {*items} for user, items in log.iter_rows()}
    for rows in of_kind.values():
        assert [(row.user_id, row.target) for row in rows] == [(row.user_id, row.target) for row in found]
        for row in rows:
            assert not {*row.target_first[1:]} & known[row.user_id]
    assert [len(rows[0].candidates) for rows in of_kind.values()] == [2, 3, 3, 3]
    for half, hardest, row in zip(of_kind["beams"], of_kind["hardest"], found, strict=True):
        assert len(row.candidates) == 5
        assert hardest.candidates == row.candidates[:3]
        assert half.candidates[0] == row.target
        assert {*half.candidates} < {*row.candidates}
    assert of_kind["beams"] != of_kind["hardest"] != of_kind["uniform"]


@pytest.mark.parametrize("objective", ["tokens", "catalogue"])
def test_ranks_are_those_of_exact_ranking(run, trial, objective):
    model = beams.model_of(run, {"objective": objective})
    assert model.objective == objective
    lm = beams.lm_ranker("sft", run.adapter("sft"), run.data, model)
    rows = run.data.split("test")[:6]
    answers = beams.answer(lm, run.data, rows, trial | {"found": 20})
    for row, seen, told in zip(rows, seen_items(run.data, rows), answers.iter_rows(named=True), strict=True):
        best = CatalogueRanker(lm).recommend(row.history, 20, without=seen - {row.target}).item_ids
        assert told[EXACT] == (1 + best.index(row.target) if row.target in best else 0)
        assert told["1 beams"] in (0, 1)
        assert told["8 beams"] <= 8
        scored = CatalogueRanker(lm).score([replace(row, candidates=(row.target,))])
        assert told["logp"] == pytest.approx(float(scored[0, 0]), abs=1e-4)
        if told["4 beams"]:
            assert told["kept"] >= told["depth"]


def test_gains_and_hits_are_zero_for_a_target_that_is_not_found():
    ranks = np.array([0, 1, 3, 10, 11])
    assert gains(ranks).tolist() == [0, 1, 1 / 2, 1 / np.log2(11), 0]
    assert hits(ranks, 3).tolist() == [0, 1, 1, 0, 0]


def test_rates_are_those_that_are_best_in_exact_ranking():
    ranks = {"sft-more-1e-5": 4, "sft-more-3e-5": 2, "s-dpo-beams-1e-5": 1, "s-dpo-beams-3e-5": 0}
    rows = [{"ranker": name, "user_id": "1", "target": "1", EXACT: rank} for name, rank in ranks.items()]
    chosen = chosen_arms(TRIAL, Answers([pl.DataFrame(rows)]))
    assert [*chosen] == [
        "sft-more-3e-5", "s-dpo-beams-1e-5", "s-dpo-hardest-1e-5", "s-dpo-uniform-1e-5", "s-dpo-beams+sft-1e-5",
        "masked-sft-3e-5",
    ]  # fmt: skip
    assert chosen["masked-sft-3e-5"]["learning_rate"] == 3e-5


def names(table: dict) -> list[str]:
    """The first cells of a table, without learning rates."""
    return [re.sub(r"-[13]e-5", "", row[0]) for row in table["rows"]]


def test_validation_prints_and_test_writes(run, trial, monkeypatch, tmp_path, capsys):
    (tmp_path / "e2.yaml").write_text(yaml.safe_dump(trial, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(beams, "TRIAL", tmp_path / "e2.yaml")
    monkeypatch.setattr(beams, "RESULT", tmp_path / "70.json")
    monkeypatch.setattr("prefrec_lab.trials.shared.ANSWERS", tmp_path)
    command = ["beams", str(run.folder), "--split"]
    monkeypatch.setattr(sys, "argv", [*command, "validation", "--arms", "sft", "sft-more-1e-5"])
    beams.main()
    first = (run.folder / "beams/sft-more-1e-5/validation.parquet").stat().st_mtime_ns
    assert not list(tmp_path.glob("e2-*.parquet"))
    monkeypatch.setattr(sys, "argv", [*command, "validation"])
    beams.main()
    assert (run.folder / "beams/sft-more-1e-5/validation.parquet").stat().st_mtime_ns == first
    assert "sft, histories of other users" in capsys.readouterr().out
    assert not (tmp_path / "70.json").exists()
    monkeypatch.setattr(sys, "argv", [*command, "test"])
    beams.main()
    result = json.loads((tmp_path / "70.json").read_text(encoding="utf-8"))
    by_beams, exact, lost, apart, shown, dose, known, means, validation = result["tables"]
    assert result["n"].endswith("1 seed; 6 comparisons in two families")
    arms = [*TRIAL["arms"]]
    compared = [" − ".join(pair) for pair in TRIAL["differences"]]
    assert names(by_beams) == names(exact) == compared
    assert names(lost) == names(apart) == ["sft", "sft, masked answers", *arms]
    assert names(shown) == arms[1:]
    assert names(dose) == arms
    assert names(known) == ["sft − popularity", "sft − window co-occurrence"]
    assert names(validation)[2:4] == ["sft", "sft, histories of other users"]
    assert names(means) == ["popularity", "window co-occurrence", "sft", "sft, masked answers", *arms]
    assert not {*pl.read_parquet(tmp_path / "e2-test-0.parquet")["target"]} & {*run.data.catalogue.ids}
