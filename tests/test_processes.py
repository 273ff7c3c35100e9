"""Two processes on one machine: the weights, the log and the scores of one; and each file from one of them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

import in_processes
from command import succeed
from prefrec import processes
from servers import free_port
from tiny_run import adapter_weights, tiny_recipe, write_model, write_recipe, write_shop

CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"


def _launch(*command: object, config: str = "ddp", cpu: str = "true") -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU, by one of the files in `configs/accelerate`, which end well."""
    file = CONFIGS / f"{config}.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port())]
    paths = os.pathsep.join([str(Path(__file__).parent / "support"), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja, for DeepSpeed
    where = {"PYTHONPATH": paths, "PATH": programs, "DS_ACCELERATOR": "cpu"}
    environment = {**os.environ, **where, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": cpu}
    command = [sys.executable, *launch, *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    """The job's outcome for two processes (`2`) and for one (`1`)."""
    folder = tmp_path_factory.mktemp("processes")
    bpe_tokenizer.save_pretrained(folder / "tokenizer")
    done = _launch(in_processes.__file__, folder)
    batch = "Global batch 8 examples = 2 per device × 2 processes × 2 accumulation steps"
    assert done.stderr.count(batch) == len(in_processes.JOBS)
    in_processes.main(folder)
    return folder


@pytest.mark.parametrize("job", in_processes.JOBS)
def test_weights_are_those_of_one_process(folder, job):
    """In float32 to 2e-5, of weights that moved by more than 1e-2."""
    one, two = (load_file(folder / n / job / "weights.safetensors") for n in "12")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)
    before = in_processes.trainable(in_processes.adapted_model())
    assert max((one[n] - before[n]).abs().max() for n in one) > 1e-2


@pytest.mark.parametrize("job", in_processes.JOBS)
def test_the_log_is_of_all_rows(folder, job):
    one, two = (json.loads((folder / n / job / "log.json").read_text()) for n in "12")
    for line, want in zip(two, one, strict=True):
        assert line.keys() == want.keys()
        for name in (k for k in line if "loss" in k or "/" in k):
            assert line[name] == pytest.approx(want[name], abs=1e-4), name
    names = {name for line in two for name in line}
    assert {"loss", "eval_loss", "logps/chosen", "eval_logps/chosen"} <= names
    assert "eval_rewards/margins" in names or job == "sft"


def test_rows_are_shared_and_all_get_the_whole_answer(folder):
    one = np.load(folder / "1" / "ranked-0.npz")
    for index in range(2):
        two = np.load(folder / "2" / f"ranked-{index}.npz")
        np.testing.assert_allclose(two["scores"], one["scores"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(two["tries"], one["tries"], rtol=0, atol=1e-4)
        assert (two["texts"] == one["texts"]).all()
    for name in ("scores", "tries"):
        assert np.isfinite(one[name]).sum() == 4 * 6 + 3 * 5


def test_the_reference_is_stored_once(folder):
    """By the first process; a job in parts of a batch and one process store the same."""
    values = [sorted((of["ref_logps"] for of in _stored(folder / n / "parts")), key=len) for n in "12"]
    assert len(values[0]) == 2  # of the rows for training and for evaluation
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-4)
    assert not _stored(folder / "2" / "live")


def _stored(folder):
    return [load_file(p) for p in folder.glob("reference-*.safetensors")]


@pytest.mark.parametrize("by", ["fsdp", "deepspeed-zero2", "deepspeed-zero3"])
def test_weights_that_are_shared_out_learn_the_same(folder, by):
    """In bfloat16, so to its rounding; a reference pass that froze the policy's adapter would break the gradient."""
    if by.startswith("deepspeed") and not find_spec("deepspeed"):
        pytest.skip("needs DeepSpeed: pip install deepspeed")
    _launch(in_processes.__file__, folder, by, config=by, cpu="false")
    for job in ("live", "parts"):
        one, two = (json.loads((folder / n / job / "log.json").read_text()) for n in ("1", by))
        for line, want in zip(two, one, strict=True):
            for name in ("loss", "eval_loss"):
                assert line.get(name) == pytest.approx(want.get(name), abs=0.01)
        weights, moved = adapter_weights(folder / by / job / "adapter"), 0.0
        before = in_processes.trainable(in_processes.adapted_model())
        # DeepSpeed trains an adapter in the base's type, beside a copy in float32.
        dtype = torch.float32 if by == "fsdp" else torch.bfloat16
        for name, value in weights.items():
            start = before[name.replace(".weight", ".default.weight")]
            assert (value.shape, value.dtype) == (start.shape, dtype)
            moved = max(moved, float((value.float() - start).abs().max()))
        assert moved > 1e-2


@pytest.mark.parametrize("name", ["deepspeed-zero2", "deepspeed-zero3"])
def test_the_deepspeed_files_are_understood(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == "DEEPSPEED"
    assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_a_recipe_in_two_processes_is_the_run_of_one(tmp_path, bpe_tokenizer):
    """One writes the folder and prints, and the scores are those of one process."""
    recipe = tiny_recipe(write_shop(tmp_path / "shop"), write_model(tmp_path / "model", bpe_tokenizer))
    recipe["align"] = recipe["align"][1:]
    recipe["sft"] |= {"per_device_batch_size": 2, "epochs": 1}
    path = write_recipe(tmp_path, recipe)
    command = Path(sys.executable).with_name("prefrec")
    done = _launch(command, "run", path, "--out", tmp_path / "two", "--json")
    assert json.loads(done.stdout)["run"] == str(tmp_path / "two")
    succeed("run", path, "--out", tmp_path / "one")
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert two["evaluation"]["metrics"] == one["evaluation"]["metrics"]
    scores = [pl.read_parquet(tmp_path / n / "predictions.parquet")["scores"].explode() for n in ("one", "two")]
    assert (scores[0] - scores[1]).abs().max() < 1e-3
    assert (tmp_path / "two" / "report.html").is_file()
    assert not list((tmp_path / "two").rglob("*.previous*"))
    for stage in ("data", "sft", "align/s-dpo"):
        assert json.loads((tmp_path / "two" / stage / "stage.json").read_text())["finished"]
    asked = ("recommend", tmp_path / "one", "--all-users", "--k", 3, "--out")
    _launch(command, *asked, tmp_path / "two.parquet")
    succeed(*asked, tmp_path / "one.parquet")
    shared, alone = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in ("two", "one"))
    assert shared.drop("score").equals(alone.drop("score"))
    assert (shared["score"] - alone["score"]).abs().max() < 1e-3


def test_one_process_shares_with_nobody():
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.share([3, 4, 5]) == [3, 4, 5]
    assert processes.pool([3, 4]) == [3, 4]


def test_shares_are_spread_and_cover_all(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        parts.append(processes.share([*range(8)]))
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert not processes.is_first()


def test_processes_wait_long_for_one_that_works_alone(monkeypatch):
    """In a group of their own, so whoever made the job's group, with whatever patience."""
    made = {}

    def gather(parts, items, group=None):
        parts[:] = [items] * len(parts)
        made["asked"] = group

    processes._group.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda: None)
    monkeypatch.setattr("torch.distributed.new_group", lambda **given: made.update(own=given) or "own")
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    assert processes.pool([1]) == [1, 1]
    processes._group.cache_clear()
    assert made == {"own": {"timeout": processes.PATIENCE}, "asked": "own"}
    assert processes.PATIENCE.days > 3


def test_the_group_of_the_launcher_with_less_patience_does_not_matter(folder):
    for index in "01":
        launched, own = (folder / "2" / f"patience-{index}.txt").read_text().split("; ")
        assert own == str(processes.PATIENCE) != launched
