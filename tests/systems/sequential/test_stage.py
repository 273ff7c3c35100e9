"""Sequential recommenders in a recipe: a row of the table like every other, trained once, or refused early."""

import json
import shutil
from pathlib import Path

import pytest

from prefrec.data import read_prepared
from prefrec.pipeline.run import run_recipe
from prefrec_systems.sequential import load_sequential
from prefrec_systems.sequential import stage as stage_module

SMALL = {"batch_size": 64, "hidden_size": 8, "inner_size": 16, "n_layers": 1}
SASREC = {"kind": "sequential", "model": "SASRec", "epochs": 2, **SMALL}


@pytest.fixture(scope="module")
def finished(alone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_recipe(alone(SASREC), folder)
    return folder


def test_a_row_like_every_other(finished, check_row):
    evaluation = json.loads((finished / "metrics.json").read_text())["evaluation"]
    assert list(evaluation["metrics"])[-2:] == ["zero-shot", "SASRec"]
    pairs = {(c["ranker"], c["against"]) for c in evaluation["comparisons"]}
    assert pairs == {("SASRec", evaluation["best_reference"]), ("zero-shot", evaluation["best_reference"])}
    assert "SASRec" in (finished / "report.html").read_text(encoding="utf-8")
    asked = load_sequential(finished / "rankers" / "SASRec", read_prepared(finished / "data").catalogue)
    check_row(finished, "SASRec", asked, 20)


def test_what_has_not_changed_is_not_trained_again(finished, alone, tmp_path, monkeypatch):
    run, trained = tmp_path / "run", []
    shutil.copytree(finished, run)
    metrics = (finished / "metrics.json").read_text()
    monkeypatch.setattr(stage_module, "train_sequential", lambda data, section, out, **more: trained.append(section))
    run_recipe(alone(SASREC), run)
    assert (trained, (run / "metrics.json").read_text()) == ([], metrics)
    run_recipe(alone(SASREC | {"epochs": 3}), run, until="SASRec")
    assert [s.epochs for s in trained] == [3]
    assert (run / "rankers" / "SASRec.previous-1" / "model.safetensors").is_file()
    run_recipe(alone(SASREC, seed=1), run, until="SASRec")
    assert len(trained) == 2
