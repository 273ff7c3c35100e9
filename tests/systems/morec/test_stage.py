"""MoRec in a recipe: a row of the table whose scores are those of the weights that it left."""

import json

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec_systems.morec import load_morec

SMALL = {"hidden_size": 8, "inner_size": 16, "n_layers": 1, "epochs": 2}


def _recipe(recipe: Recipe, **changes) -> Recipe:
    morec = {"kind": "morec", "encoder": recipe.model.name, **SMALL, **changes}
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": [morec]}
    raw["evaluate"] |= {"rows": 8, "zero_shot": False, "generate_rows": 0}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """To be read only."""
    folder = tmp_path_factory.mktemp("morec") / "run"
    run_recipe(_recipe(recipe), folder)
    return folder


def test_a_row_of_the_table(finished):
    metrics = json.loads((finished / "metrics.json").read_text())["evaluation"]["metrics"]
    assert metrics["MoRec"].keys() == metrics["popularity"].keys()
    data = read_prepared(finished / "data")
    asked = load_morec(finished / "rankers" / "MoRec", data.catalogue)
    rows = read_predictions(finished / "predictions.parquet").filter(pl.col("ranker") == "MoRec").sort("row")
    np.testing.assert_allclose(rows["scores"].to_list(), asked.score(data.test[:8]), atol=1e-6)
    assert "MoRec" in (finished / "report.html").read_text(encoding="utf-8")
