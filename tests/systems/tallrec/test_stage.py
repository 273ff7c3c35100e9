"""TALLRec in a recipe: a row of the table; with and without ratings."""

import json

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec_systems.tallrec import Opinions, load_like_template, load_tallrec
from prefrec_systems.tallrec import stage as stage_module

ROWS = {"rows": 16, "global_batch_size": 8, "learning_rate": 5e-3, "save_steps": 1}
TALLREC = {"kind": "tallrec", **ROWS}


def _recipe(recipe: Recipe, tallrec: dict, **sections) -> Recipe:
    alone = {"sft": None, "align": [], "rankers": [tallrec]}
    raw = recipe.model_dump(mode="json") | alone | sections
    raw["evaluate"] |= {"rows": 6, "generate_rows": 2}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tallrec")
    run_recipe(_recipe(recipe, TALLREC), folder)
    return folder


def test_a_row_of_the_table(finished, recipe):
    metrics = json.loads((finished / "metrics.json").read_text())["evaluation"]["metrics"]
    assert metrics["TALLRec"].keys() == metrics["popularity"].keys()
    log = json.loads((finished / "rankers" / "TALLRec" / "log.json").read_text())
    assert log[-1]["step"] == 2
    rows = read_predictions(finished / "predictions.parquet").filter(pl.col("ranker") == "TALLRec").sort("row")
    data = read_prepared(finished / "data")
    asked = load_tallrec(
        "TALLRec",
        recipe.model.name,
        finished / "rankers" / "TALLRec" / "adapter",
        data.catalogue,
        load_like_template(None, domain="movies"),
        Opinions(data.train_interactions, 4.0),
        loading={"dtype": "float32"},
    )
    scores = np.array(rows["scores"].to_list())
    np.testing.assert_allclose(scores, asked.score(data.test[:6]), atol=1e-5)
    assert ((scores > 0) & (scores < 1)).all()
    assert rows["generated"].null_count() == 6  # its answers are no titles


@pytest.fixture
def rated(recipe, tmp_path) -> Recipe:
    """The same log with ratings from 1 to 5."""
    log = pl.read_csv(recipe.data.interactions)
    ratings = pl.Series("rating", [1 + n % 5 for n in range(len(log))])
    log.with_columns(ratings).write_csv(tmp_path / "rated.csv")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"interactions": tmp_path / "rated.csv"})})


def test_with_ratings_the_questions_are_about_targets(rated, tmp_path, monkeypatch):
    asked = []
    inner = stage_module.tallrec_dataset
    monkeypatch.setattr(
        stage_module, "tallrec_dataset", lambda questions, *rest: asked.append(questions) or inner(questions, *rest)
    )
    monkeypatch.setattr(stage_module, "train_to_weights", lambda trainer, folder: None)
    config = {**TALLREC, "rows": None, "eval_rows": 4}
    run_recipe(_recipe(rated, config), tmp_path / "run", until="rankers")
    data = read_prepared(tmp_path / "run" / "data")
    ratings = {(u, i): r for u, i, r in data.train_interactions.select("user_id", "item_id", "rating").iter_rows()}
    (questions,) = asked  # and none about validation rows, whose ratings are not told
    want = {(e.target, ratings[e.user_id, e.target] >= 4) for e in data.train}
    assert {(q.item, q.liked) for q in questions} == want
    assert len(questions) == len(data.train)
