"""A small data set and a small saved model for the stages."""

import pytest

from prefrec.data import PreparedData, prepare
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.score import LMEntry, adapter_key
from prefrec.pipeline.train import train_sft
from tiny_run import tiny_recipe, write_model, write_shop


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, bpe_tokenizer) -> Recipe:
    """The recipe of `tiny_run`, on files of its own; copy it before you change it."""
    folder = tmp_path_factory.mktemp("tiny")
    shop, model = write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer)
    return Recipe.model_validate(tiny_recipe(shop, model))


@pytest.fixture(scope="session")
def data(recipe) -> PreparedData:
    return prepare(recipe.data)


@pytest.fixture(scope="session")
def adapter(recipe, data, tmp_path_factory):
    """The folder of an adapter after a few steps of SFT; to be read only."""
    folder = tmp_path_factory.mktemp("sft")
    return train_sft(data, recipe.model, recipe.lora, recipe.sft, folder, seed=0)


@pytest.fixture
def entries(adapter, data):
    """The model before training, and with that adapter."""
    return [LMEntry("zero-shot", None, adapter_key(None, data)), LMEntry("sft", adapter, adapter_key(adapter, data))]
