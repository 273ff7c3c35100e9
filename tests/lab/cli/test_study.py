"""`prefrec lab study` end to end on a tiny recipe: what is written, what is made again, and what is refused."""

import json
import re

import polars as pl
import pytest
import yaml

from command import prefrec, succeed
from prefrec_lab.studies.registry import STUDIES
from tiny_run import write_recipe

LOSSES = ("dpo", "dpo-pairs", "dmpo", "bpr", "softmax", "s-dpo")


@pytest.fixture(scope="module")
def recipe(place, tmp_path_factory):
    short, raw = {"rows": 16, "eval_rows": 0, "epochs": 1}, place.recipe
    evaluate = {"rows": 20, "full_rows": 0, "zero_shot": False, "baselines": ["popularity"], "ks": [1, 3]}
    sections = {"data": raw["data"] | {"max_validation_rows": 8}, "align": [raw["align"][1] | short]}
    sections |= {"sft": raw["sft"] | short, "evaluate": evaluate}
    return write_recipe(tmp_path_factory.mktemp("study-recipe"), raw, **sections)


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The ablation: its folder, and what was printed."""
    out = tmp_path_factory.mktemp("studies")
    printed = prefrec("lab", "study", "ablation", "--recipe", recipe, "--seeds", "0", "--out", out)
    assert printed.code == 0, printed.err
    return out, printed


def test_facts_and_the_page_are_printed(done):
    out, printed = done
    *facts, page = printed.out.splitlines()
    assert page == f"Page: {out}/ablation/page.html"
    assert facts == json.loads((out / "ablation" / "study.json").read_text())["facts"]
    assert re.match(r"HR@1: the largest difference from S-DPO \(0\.\d{3} \[", facts[0])


def test_everything_is_written(done):
    out, _ = done
    names = {p.name for p in (out / "ablation").iterdir()}
    assert names == {"study.json", "table.csv", "table.md", "page.html", "hr-1.png", "hr-1.svg", "seed-0.recipe.yaml"}
    summary = json.loads((out / "ablation" / "study.json").read_text())
    assert (summary["n"], summary["users"], summary["seeds"], summary["candidates"]) == (20, 20, [0], 6)
    assert summary["question"] == STUDIES["ablation"].question
    assert [r["seed"] for r in summary["recipes"]] == [0]
    assert summary["folder"] == f"{out}/ablation"
    assert (out / "ablation" / "hr-1.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "ablation" / "page.html").read_text(encoding="utf-8")
    for text in (STUDIES["ablation"].question, *summary["facts"], '<img class="plot"', "DMPO", "95% intervals"):
        assert text in page
    assert yaml.safe_load((out / "ablation" / "seed-0.recipe.yaml").read_text())["align"][2]["loss"] == "dmpo"


def test_again_nothing_is_trained_and_the_numbers_stay(done, recipe):
    out, _ = done
    before = pl.read_csv(out / "ablation" / "table.csv")
    again = prefrec("lab", "study", "ablation", "--recipe", recipe, "--seeds", "0", "--out", out)
    assert again.code == 0, again.err
    unchanged = [line for line in again.err.splitlines() if line.endswith(": unchanged")]
    assert unchanged.count("sft: unchanged") == 1
    assert {line.partition(":")[0] for line in unchanged} == {"prepare", "sft", *LOSSES}
    assert pl.read_csv(out / "ablation" / "table.csv").equals(before)


def test_studies_share_what_is_the_same(done, recipe):
    out, _ = done
    asked = ("--recipe", recipe, "--seeds", "0", "--out", out, "--set", "align.0.beta=1", "--json")
    summary = json.loads(succeed("lab", "study", "beta", *asked))
    assert summary == json.loads((out / "beta" / "study.json").read_text())
    trained = {p.name for p in (out / "runs" / "seed-0" / "align").iterdir()}
    assert trained == {*LOSSES, *(f"s-dpo-beta{b}" for b in ("0.1", "0.5", "3", "5"))}
    assert not list((out / "runs").rglob("*.previous*"))
    assert {r["variant"] for r in summary["tables"]["table"]} >= {"sft", "s-dpo", "s-dpo-beta0.1"}


def test_other_data_are_read_from_their_place(recipe, tmp_path):
    given = ("--data", f"movielens-csv={tmp_path / 'nowhere'}")
    refused = prefrec("lab", "study", "ablation", "--recipe", recipe, "--out", tmp_path / "out", *given)
    assert refused.code == 1
    assert f"{tmp_path}/nowhere" in refused.err
