"""A tiny base recipe for studies, and the folder in which several studies share their runs."""

from pathlib import Path

import pytest

from prefrec.data import PreparedData
from prefrec.intake import prepare
from prefrec.pipeline.recipe import Recipe
from prefrec_lab.studies.carry_out import carry_out
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
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def summary(request, base, place):
    """The results of the module's STUDY on the tiny recipe."""
    return carry_out(request.module.STUDY, base, [0], place)
