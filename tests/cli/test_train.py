"""The training stages by the command line: their losses step by step, batches, and what they refuse."""

import json
import math
from pathlib import Path

import pytest
import torch

from command import prefrec
from tiny_run import TRAINING, adapter_weights, write_recipe

TRAJECTORY = json.loads((Path(__file__).parent / "loss_trajectory.json").read_text())
"""Losses that the tiny runs of `conftest.place` logged when they were known to be right; after a change that is
meant to alter training, the new values are what the failing test prints."""


def _losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("stage", ["sft", "s_dpo"])
def test_losses_follow_the_committed_trajectory(place, stage):
    losses = _losses(getattr(place, stage))
    assert losses == pytest.approx(TRAJECTORY[stage], abs=1e-3), [round(loss, 6) for loss in losses]


def test_the_trajectories_are_those_of_learning():
    for losses in TRAJECTORY.values():
        assert losses == sorted(losses, reverse=True)
    assert TRAJECTORY["sft"][0] == pytest.approx(math.log(60), abs=0.1)
    assert TRAJECTORY["s_dpo"][0] == pytest.approx(math.log(4), abs=0.1)
    assert TRAJECTORY["s_dpo"][-1] < math.log(4) - 0.1


def test_accumulation_equals_a_large_batch(place, tmp_path):
    """Of both stages: the run of `place` takes four rows at a time."""
    align = [TRAINING | {"negatives_from": "list", "num_negatives": 3, "epochs": 2, "per_device_batch_size": 8}]
    for size in (8, 2):
        sized = {"epochs": 2, "per_device_batch_size": size}
        recipe = write_recipe(tmp_path, place.recipe, sft=TRAINING | sized, align=[align[0] | sized])
        done = prefrec("run", recipe, "--out", tmp_path / str(size), "--until", "align")
        assert f"Global batch 8 examples = {size} per device × 1 process × {8 // size} accumulation steps" in done.err
        assert done.out == f"Run: {tmp_path / str(size)}\n"
    for stage in ("sft", "align/s-dpo"):
        assert _losses(tmp_path / "2" / stage) == pytest.approx(_losses(tmp_path / "8" / stage), abs=1e-4)
        large, small = (adapter_weights(tmp_path / size / stage / "adapter") for size in ("8", "2"))
        for name, value in large.items():
            torch.testing.assert_close(small[name], value, rtol=0, atol=5e-4)


def test_a_folder_of_other_things_is_left_alone(place, tmp_path):
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "sft" / "log.csv").write_text("a,b\n")
    recipe = write_recipe(tmp_path, place.recipe)
    done = prefrec("run", recipe, "--out", tmp_path / "run", "--until", "sft")
    assert (done.code, done.out) == (1, "")
    assert "sft already exists and is not from prefrec (it has no stage.json)" in done.err
    assert [p.name for p in (tmp_path / "run" / "sft").iterdir()] == ["log.csv"]
