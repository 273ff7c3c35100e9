"""A tiny base recipe for studies, and the folder in which several studies share their runs."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from prefrec.data import PreparedData, prepare, read_prepared, write_prepared
from prefrec.pipeline.recipe import Recipe
from sealed import seal_stage
from tiny_run import tiny_recipe, write_model, write_shop


@pytest.fixture(scope="session")
def base(tmp_path_factory, bpe_tokenizer) -> Recipe:
    """The recipe of `tiny_run` with one S-DPO alignment and few steps; copy it before you change it."""
    folder = tmp_path_factory.mktemp("studies-base")
    raw = tiny_recipe(write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer))
    short = {"rows": 16, "eval_rows": 0, "epochs": 1}
    raw["sft"] |= short
    raw["align"] = [raw["align"][1] | short]
    raw["evaluate"] = {"rows": 20, "full_rows": 0, "zero_shot": False, "references": ["popularity"], "ks": [1, 3]}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="session")
def data(base) -> PreparedData:
    return prepare(base.data)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Where the studies of the tests are carried out."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def other_rows(place, tmp_path) -> Path:
    """A run of the studies once more, with its validation and test rows the other way round."""
    folder = tmp_path / "other-rows"
    copytree(min((place / "runs").glob("*seed-0"), key=lambda run: len(run.name)), folder)
    data = read_prepared(folder / "data")
    write_prepared(replace(data, validation=data.validation[::-1], test=data.test[::-1]), folder / "data")
    seal_stage(folder / "data")
    return folder
