"""A small data set and a small trained model, as fixtures of the tests of stages and of whole runs."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.intake import prepare
from prefrec.recipe import Recipe
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import LMStage
from prefrec.stages.train import train_sft
from prefrec.training.progress import ProgressCallback
from tiny_run import ITEMS, RATED
from tiny_run import data as data
from tiny_run import recipe as recipe


@pytest.fixture(scope="session")
def adapter(recipe, data, tmp_path_factory):
    """The folder of an adapter after a few steps of SFT; to be read only."""
    return train_sft(RunInputs(data, "", recipe.model, recipe.lora, 0), recipe.sft, tmp_path_factory.mktemp("sft"))


@pytest.fixture
def entries(adapter, data, recipe):
    """The model before training, and with that adapter."""
    return [LMStage(name, weights, data, recipe.model) for name, weights in (("zero-shot", None), ("sft", adapter))]


@pytest.fixture(scope="session")
def rated_recipe(recipe, tmp_path_factory) -> Recipe:
    """The tiny recipe on a log of 40 users with 25 items each, ratings from 1 to 5, and three items shown."""
    path = tmp_path_factory.mktemp("rated") / "log.parquet"
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        items = rng.permutation(ITEMS).tolist()
        for n in range(25):
            shown = [f"i{i}" for i in rng.choice(items[25:], 3, replace=False)]
            rows.append((f"u{user:02}", f"i{items[n]}", n, float(1 + items[n] % 5), shown))
    schema = ["user_id", "item_id", "timestamp", "rating", "shown"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"interactions": str(path), "split": "time-share", "columns": {"impressions": "shown"}}
    return Recipe.model_validate(raw | {"align": [raw["align"][1] | RATED], "sft": raw["sft"] | {"epochs": 1}})


@pytest.fixture(scope="session")
def rated(rated_recipe) -> PreparedData:
    return prepare(rated_recipe.data)


@pytest.fixture
def stop_after():
    """A context in which training must stop: of a stage or any, right after step n, before a checkpoint of it."""

    @contextmanager
    def stop(step, stage=None):
        whole = ProgressCallback.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            whole(self, args, state, control, **kwargs)
            if stage in (None, self.description) and state.global_step == step:
                raise KeyboardInterrupt

        with mock.patch.object(ProgressCallback, "on_step_end", on_step_end), pytest.raises(KeyboardInterrupt):
            yield

    return stop
