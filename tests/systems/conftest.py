"""The small data set and model of the stages, for those of the compared systems, and what their tests share."""

import json

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.recipe import Recipe


@pytest.fixture(scope="session")
def alone(recipe):
    """Makes the recipe with these rankers, without SFT and alignments."""

    def make(*rankers, evaluate=None, **sections) -> Recipe:
        raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": list(rankers)} | sections
        raw["evaluate"] |= evaluate or {}
        return Recipe.model_validate(raw)

    return make


@pytest.fixture(scope="session")
def check_row():
    """Checks a ranker's row of a run's table: its metrics are all there, its n scores those of `asked`."""

    def check(folder, name, asked, n, atol=1e-6) -> pl.DataFrame:
        metrics = json.loads((folder / "metrics.json").read_text())["evaluation"]["metrics"]
        assert metrics[name].keys() == metrics["popularity"].keys()
        rows = read_predictions(folder / "predictions.parquet").filter(pl.col("ranker") == name).sort("row")
        test = read_prepared(folder / "data").test[:n]
        np.testing.assert_allclose(rows["scores"].to_list(), asked.score(test), rtol=0, atol=atol)
        return rows

    return check
