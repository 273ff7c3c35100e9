"""The examples with Ray: training, and answers for all users, on two local workers."""

import importlib.util
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from prefrec.pipeline.run import run_recipe
from prefrec.recipe import load_recipe
from prefrec.recommender import Recommender
from tiny_run import adapter_weights, tiny_recipe, write_model, write_recipe, write_shop

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data,train]'")
EXAMPLES = Path(__file__).parents[1] / "examples"
STAGES = ("sft", "align/s-dpo")


def _example(name):
    """A module of the folder `examples`. Workers, which cannot import it, get its functions by value."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    ray.cloudpickle.register_pickle_by_value(module)
    return module


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, object_store_memory=100 << 20, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, bpe_tokenizer):
    folder = tmp_path_factory.mktemp("ray")
    raw = tiny_recipe(write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer))
    raw["align"] = raw["align"][1:]
    raw["evaluate"] |= {"generate_rows": 0, "full_rows": 4, "references": ["popularity"]}
    return write_recipe(folder, raw)


@pytest.fixture(scope="module")
def run(recipe):
    """The run of one process."""
    folder = recipe.parent / "one"
    run_recipe(load_recipe(recipe), folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_two_workers_train_the_weights_of_one_process(cluster, recipe, run):
    """In float32, to 2e-5."""
    out = recipe.parent / "two"
    _example("ray_train").launch(recipe, out, workers=2)
    for stage in STAGES:
        one, two = (adapter_weights(folder / stage / "adapter") for folder in (run, out))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_workers_answer_for_all_users(cluster, run, tmp_path):
    rec = Recommender.from_run(run)
    want = rec.recommend_all(k=10).sort("user_id", "rank")
    want.select("user_id").unique().write_csv(tmp_path / "users.csv")
    _example("ray_answers").answer(str(run), str(tmp_path / "users.csv"), str(tmp_path / "out"), workers=2, batch=8)
    got = pl.read_parquet(tmp_path / "out" / "*.parquet").sort("user_id", "rank")
    assert got.drop("score").equals(want.drop("score").cast(got.drop("score").schema))
    assert (got["score"] - want["score"]).abs().max() < 1e-4
