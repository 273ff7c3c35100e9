"""The tiny recipe that tests of studies start from."""

import pytest

from prefrec.recipe import Recipe
from tiny_run import tiny_recipe, write_model, write_shop


@pytest.fixture(scope="session")
def base(tmp_path_factory, bpe_tokenizer) -> Recipe:
    """The recipe of `tiny_run` with one S-DPO alignment and few steps; copy it before you change it."""
    folder = tmp_path_factory.mktemp("studies-base")
    raw = tiny_recipe(write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer))
    short = {"rows": 16, "eval_rows": 0, "epochs": 1}
    raw["sft"] |= short
    raw["align"] = [raw["align"][1] | short]
    raw["evaluate"] = {"rows": 20, "full_rows": 0, "zero_shot": False, "baselines": ["popularity"], "ks": [1, 3]}
    return Recipe.model_validate(raw)
