"""The examples with Ray: training, answers for all users, and a server, on two local workers."""

import importlib.util
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch
from starlette.testclient import TestClient

from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import load_recipe
from prefrec.recommender import Recommender
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine
from tiny_run import adapter_weights, tiny_recipe, write_model, write_recipe, write_shop

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data,train,serve]'")
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
    raw["evaluate"] |= {"generate_rows": 0, "full_rows": 4, "baselines": ["popularity"]}
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


def _kill_a_worker_when(is_time):
    """Wait until `is_time()`, then kill a process that trains; return its id, or None after five minutes."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        workers = [p for p in psutil.process_iter(["name"]) if "RayTrainWorker" in (p.info["name"] or "")]
        if is_time() and workers:
            workers[0].kill()
            return workers[0].pid
        time.sleep(0.05)
    return None


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_after_a_worker_was_killed(cluster, recipe, run):
    """The weights are those of a run without a failure, in float32 to 2e-5."""
    out = recipe.parent / "killed"
    with ThreadPoolExecutor(1) as other:
        killed = other.submit(_kill_a_worker_when, lambda: any(out.glob("sft/**/checkpoint-*")))
        _example("ray_train").launch(recipe, out, workers=2)
    assert killed.result()
    for stage in STAGES:
        one, two = (adapter_weights(folder / stage / "adapter") for folder in (run, out))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_answers_go_on_after_a_stop(cluster, run, tmp_path):
    """Answers that are there stay; a file that was cut off is replaced; each user is answered once."""
    rec, out = Recommender.from_run(run), tmp_path / "out"
    users = sorted(rec.recommend_all(k=10)["user_id"].unique())
    first, rest = users[:5], users[5:]
    pl.DataFrame({"user_id": first}).write_csv(tmp_path / "first.csv")
    pl.DataFrame({"user_id": users}).write_csv(tmp_path / "users.csv")
    answer = _example("ray_answers").answer
    answer(str(run), str(tmp_path / "first.csv"), str(out), workers=2, batch=4)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    assert kept
    (out / "cut-off.parquet").write_bytes(next(iter(kept)).read_bytes()[:-9])
    for _ in range(2):  # the second time there is nothing left to do
        answer(str(run), str(tmp_path / "users.csv"), str(out), workers=2, batch=4)
        assert not (out / "cut-off.parquet").exists()
        found = pl.read_parquet(out / "*.parquet").group_by("user_id").len()
        assert dict(found.iter_rows()) == dict.fromkeys([*first, *rest], 10)
        assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.filterwarnings("ignore")
def test_workers_answer_for_all_users(cluster, run, tmp_path):
    rec = Recommender.from_run(run)
    want = rec.recommend_all(k=10).sort("user_id", "rank")
    want.select("user_id").unique().write_csv(tmp_path / "users.csv")
    _example("ray_answers").answer(str(run), str(tmp_path / "users.csv"), str(tmp_path / "out"), workers=2, batch=8)
    got = pl.read_parquet(tmp_path / "out" / "*.parquet").sort("user_id", "rank")
    assert got.drop("score").equals(want.drop("score").cast(got.drop("score").schema))
    assert (got["score"] - want["score"]).abs().max() < 1e-4


@pytest.fixture
def address(cluster, run):
    """The address at which Ray Serve answers for the run."""
    serve = pytest.importorskip("ray.serve", reason="needs pip install 'ray[serve]'", exc_type=ImportError)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(_example("ray_serve").application(str(run), fewest=2, most=2))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def _post(url, body):
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def _numbers(value):
    """The value with its numbers taken out, and these numbers."""
    if isinstance(value, dict):
        pairs = [(name, _numbers(inner)) for name, inner in value.items()]
        return [(name, rest) for name, (rest, _) in pairs], [n for _, (_, found) in pairs for n in found]
    if isinstance(value, list):
        both = [_numbers(inner) for inner in value]
        return [rest for rest, _ in both], [n for _, found in both for n in found]
    return (None, [value]) if isinstance(value, float) else (value, [])


@pytest.mark.filterwarnings("ignore")
def test_replicas_of_ray_serve_answer_like_the_server(run, address):
    opened = open_run(run)
    engine = open_engine(opened)
    client = TestClient(create_app(engine, Settings(opened.recipe.name, opened.recipe.model.name)))
    history = [{"item_id": "i3"}, {"item_id": "i4"}]
    for ranker in ("s-dpo", "sft", "popularity"):
        asked = {"history": history, "ranker": ranker}
        for path, body in {
            "recommend": asked | {"k": 5},
            "rank": asked | {"candidates": ["Red Emma", "Old Night"]},
            "explain": asked | {"item": "Red Emma"},
            "similar": {"item": "Red Emma", "ranker": ranker},
            "items": {},  # a wrong method
        }.items():
            plain = client.post(f"/v1/{path}", json=body)
            status, found = _post(f"{address}/v1/{path}", body)
            (want, numbers), (got, others) = _numbers(plain.json()), _numbers(found)
            assert (status, got) == (plain.status_code, want)
            assert others == pytest.approx(numbers, abs=1e-4)
    engine.close()
