"""`prefrec run`, `evaluate` and `report` on a tiny data set, for people and for machines."""

import json
import re
import shutil
import subprocess
import sys
from textwrap import dedent

import pytest

from command import prefrec, refused, succeed
from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.evaluation.best import Best
from tiny_run import write_recipe


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A run by the command line: its folder, its recipe, and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder, place.recipe)
    return folder / "tiny", recipe, prefrec("run", recipe, "--out", folder / "tiny")


def test_run_prints_the_table_and_where_the_report_is(finished):
    folder, _, done = finished
    assert done.code == 0, done.err
    for name in ("popularity", "zero-shot", "sft", "dpo", "s-dpo", "full ranking"):
        assert re.search(rf"\b{name}\b", done.out.lower())
    report = (folder / "report.html").read_text().lower()
    for name in ("random", "hr@1", "valid", "co-occurrence"):
        assert re.search(rf"\b{name}\b", report)
    assert done.out.lstrip().startswith("Audit:")  # the verdict comes first
    assert done.out.endswith(f"Report: {folder}/report.html\n")
    assert "Next: mend the candidate sets as the audit says" in done.out  # which are also training examples
    assert len(done.out.splitlines()) <= 35  # the report has all metrics, groups and differences
    assert len(done.err.splitlines()) <= 45
    # What `prepare` would say of the data, once.
    assert len(re.findall(r"^• .*users.* items.* interactions", done.err, re.MULTILINE)) == 1
    stages = ["prepare", "sft", "dpo", "s-dpo", "evaluate"]
    assert [line for line in done.err.splitlines() if line in stages] == stages


def test_the_recipe_in_the_folder_runs_again_and_says_what_is_unchanged(finished):
    folder, recipe, _ = finished
    adapter = folder / "align" / "s-dpo" / "adapter" / "adapter_model.safetensors"
    stamp = adapter.stat().st_mtime_ns
    done = prefrec("run", folder / "recipe.yaml", "--out", folder, "--json")
    value = json.loads(done.out)
    metrics, best = (json.loads((folder / name).read_text()) for name in ("metrics.json", "best.json"))
    assert value == {"run": str(folder), "metrics": metrics, "best": best}
    said = " ".join(prefrec("run", recipe, "--out", folder).out.split())
    assert (
        f"{Best.from_json(best).sentence}. serve, recommend and export use the default unless --ranker names another."
        in said
    )
    unchanged = [line for line in done.err.splitlines() if "unchanged" in line]
    assert unchanged == [f"{name}: unchanged" for name in ("prepare", "sft", "dpo", "s-dpo")]
    assert adapter.stat().st_mtime_ns == stamp


def test_what_loads_no_language_model_imports_no_transformers(finished):
    """So that plan, a run of finished stages and a baseline's answer start in two seconds and not in eight."""
    folder, recipe, _ = finished
    of_run = [str(recipe), "--out", str(folder)]
    lines = [["plan", *of_run], ["run", *of_run, "--until", "align"]]
    lines += [["recommend", str(folder), "--history", "Old Heat", "--ranker", "popularity"]]
    code = f"""
        import sys
        from prefrec.cli import command_line
        for line in {lines}:
            command_line()(line)
        print(*sorted({{"transformers", "peft", "bitsandbytes"}} & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert "s-dpo: unchanged" in done.stderr
    assert done.stderr.splitlines()[-1] == ""


def test_the_folder_is_named_after_the_recipe(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert succeed("run", write_recipe(tmp_path, place.recipe), "--until", "prepare") == "Run: runs/tiny\n"
    assert len(read_prepared(tmp_path / "runs" / "tiny" / "data").test) == 40
    machine = succeed("run", write_recipe(tmp_path, place.recipe), "--until", "prepare", "--json")
    assert json.loads(machine) == {"run": "runs/tiny", "metrics": None}


def test_single_verbs_equal_the_run(place, finished, tmp_path):
    """The same settings step by step: the same rows, and scores to rounding."""
    folder, _, _ = finished
    adapters = [f"--adapter={name}={folder / of / 'adapter'}" for name, of in (("sft", "sft"), ("x", "align/dpo"))]
    options = ("--rows", 20, "--out", tmp_path / "out", "--generate-rows", 4)
    metrics = json.loads(succeed("evaluate-adapters", folder / "data", *adapters, *place.asked, *options, "--json"))
    of_run = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["evaluation"]["metrics"])[-3:] == ["zero-shot", "sft", "x"]
    for name in ("zero-shot", "sft", "popularity", "random"):
        of_verb, want = (found["evaluation"]["metrics"][name]["hr@1"] for found in (metrics, of_run))
        assert of_verb == want
    assert metrics["generation"]["metrics"]["sft"] == of_run["generation"]["metrics"]["sft"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    rankers = len(metrics["evaluation"]["metrics"])
    assert len(read_predictions(tmp_path / "out" / "predictions.parquet")) == rankers * 20


def test_evaluate_refuses_a_llara_adapter(place, tmp_path):
    shutil.copytree(place.s_dpo / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "projector.safetensors").write_bytes(b"")
    asked = (
        "evaluate-adapters",
        place.data,
        *place.asked,
        "--out",
        tmp_path,
        "--adapter",
        f"a={tmp_path / 'adapter'}",
    )
    assert "has more than a language model (projector.safetensors)" in refused(*asked)
