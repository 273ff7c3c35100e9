"""Refit: after choices on validation examples, every ranker also learns validation interactions."""

import json
from pathlib import Path

import pytest

from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe

PARTS = ["co-occurrence", "window co-occurrence", "EASE", "SASRec", "sft"]


@pytest.fixture(scope="module")
def recipe(recipe) -> Recipe:
    """The tiny recipe, with rankers of every sort and a blend of them, all refit."""
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"templates": ["history"]}
    raw["sft"] |= {"rows": None, "epochs": 1}
    raw["align"] = raw["align"][1:]
    raw["rankers"] = [
        {"kind": "ease"},
        {"kind": "sequential", "hidden_size": 8, "inner_size": 8, "n_layers": 1, "epochs": 2},
        {"kind": "blend", "parts": PARTS},
    ]
    references = ["popularity", "window co-occurrence", "title TF-IDF"]
    raw["evaluate"] |= {"full_rows": 3, "references": references, "generate_rows": 0}
    return Recipe.model_validate(raw | {"refit": True})


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A finished run, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "refit"
    run_recipe(recipe, folder)
    return folder


def test_refit_stages_have_a_folder_key_and_seal_of_their_own(finished):
    for stage in ("sft", "align/s-dpo", "rankers/SASRec"):
        first, again = (json.loads((f / stage / "stage.json").read_text()) for f in (finished, finished / "refit"))
        assert first["finished"]
        assert again["finished"]
        assert again["files"]
        assert first["key"] != again["key"]
    assert not (finished / "refit" / "rankers" / "blend").exists()
