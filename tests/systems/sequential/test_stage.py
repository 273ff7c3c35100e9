"""Sequential recommenders in a recipe: a row of the table like every other, trained once, or refused early."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec_systems.sequential import load_sequential
from prefrec_systems.sequential import stage as stage_module

SASREC = {
    "kind": "sequential",
    "model": "SASRec",
    "epochs": 2,
    "batch_size": 64,
    "hidden_size": 8,
    "inner_size": 16,
    "n_layers": 1,
}


def _changed(recipe: Recipe, **sections) -> Recipe:
    alone = {"sft": None, "align": [], "rankers": [SASREC]}
    raw = recipe.model_dump(mode="json") | alone | sections
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A run of SASRec, the reference rows and the untrained language model, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_recipe(_changed(recipe), folder)
    return folder


def test_a_row_like_every_other(finished):
    evaluation = json.loads((finished / "metrics.json").read_text())["evaluation"]
    assert list(evaluation["metrics"])[-2:] == ["zero-shot", "SASRec"]
    assert evaluation["metrics"]["SASRec"].keys() == evaluation["metrics"]["popularity"].keys()
    pairs = {(c["ranker"], c["against"]) for c in evaluation["comparisons"]}
    assert pairs == {("SASRec", evaluation["best_reference"]), ("zero-shot", evaluation["best_reference"])}
    assert "SASRec" in (finished / "report.html").read_text(encoding="utf-8")
    data = read_prepared(finished / "data")
    asked = load_sequential(finished / "rankers" / "SASRec", data.catalogue)
    rows = read_predictions(finished / "predictions.parquet").filter(pl.col("ranker") == "SASRec").sort("row")
    assert len(rows) == 20
    np.testing.assert_allclose(rows["scores"].to_list(), asked.score(data.test[:20]), atol=1e-6)


def test_what_has_not_changed_is_not_trained_again(finished, recipe, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    metrics = (finished / "metrics.json").read_text()
    trained = []
    monkeypatch.setattr(stage_module, "train_sequential", lambda data, section, out, seed: trained.append(section))
    run_recipe(_changed(recipe), tmp_path / "run")
    assert (trained, (tmp_path / "run" / "metrics.json").read_text()) == ([], metrics)
    run_recipe(_changed(recipe, rankers=[SASREC | {"epochs": 3}]), tmp_path / "run", until="SASRec")
    assert [s.epochs for s in trained] == [3]
    assert (tmp_path / "run" / "rankers" / "SASRec.previous-1" / "model.safetensors").is_file()
    run_recipe(_changed(recipe, seed=1), tmp_path / "run", until="SASRec")
    assert len(trained) == 2
