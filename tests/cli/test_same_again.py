"""The same recipe and seed, here and in another process: the same weights and metrics, to the last digit."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from safetensors.numpy import load_file

from tiny_run import tiny_recipe, write_model, write_recipe, write_shop

CHANGED = {"environment.json", "report.html", "log.json", "stage.json"}
"""Files with times in them."""


def _run(recipe, out, hash_seed):
    """`prefrec run` in a process with one thread; another hash seed gives sets of texts another order."""
    command = [sys.executable, "-m", "prefrec", "run", recipe, "--out", out]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.check_output(command, env=environment, text=True)


def _contents(folder):
    """Path → hash of the files that a run makes, but for times and for what belongs to no one in particular."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_settled(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGED and "checkpoint" not in str(path)
    }


def _settled(path):
    """The bytes of a file, without times; PEFT writes the set of adapted layers in the order of their hashes."""
    if path.parent.name == "reference":
        return load_file(path)["ref_logps"].tobytes()
    if path.name != "adapter_config.json":
        return path.read_bytes()
    config = json.loads(path.read_text())
    return json.dumps(config | {"target_modules": sorted(config["target_modules"])}).encode()


@pytest.mark.timeout(900)
def test_the_same_recipe_and_seed_twice(tmp_path, bpe_tokenizer):
    raw = tiny_recipe(write_shop(tmp_path / "shop"), write_model(tmp_path / "model", bpe_tokenizer))
    raw["align"] = raw["align"][1:]
    raw["evaluate"] |= {"rows": 8, "full_rows": 4}
    recipe = write_recipe(tmp_path, raw)
    first, again = (_run(recipe, tmp_path / f"run-{seed}", seed) for seed in "12")
    assert first.replace("run-1", "run-2") == again
    found = _contents(tmp_path / "run-1")
    assert found == _contents(tmp_path / "run-2")
    assert {"metrics.json", "predictions.parquet", "sft/adapter/adapter_model.safetensors"} <= set(found)
