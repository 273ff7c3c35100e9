"""Losses of the training stages, step by step."""

import json
import math
from pathlib import Path

import pytest

TRAJECTORY = json.loads((Path(__file__).parent / "loss_trajectory.json").read_text())
"""Losses that the tiny runs of `conftest.place` logged when they were known to be right; after a change that is
meant to alter training, the new values are what the failing test prints."""


@pytest.mark.parametrize("stage", ["sft", "s_dpo"])
def test_losses_follow_the_committed_trajectory(place, stage):
    log = json.loads((getattr(place, stage) / "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses == pytest.approx(TRAJECTORY[stage], abs=1e-3), [round(loss, 6) for loss in losses]


def test_the_trajectories_are_those_of_learning():
    for losses in TRAJECTORY.values():
        assert losses == sorted(losses, reverse=True)
    assert TRAJECTORY["sft"][0] == pytest.approx(math.log(60), abs=0.1)
    assert TRAJECTORY["s_dpo"][0] == pytest.approx(math.log(4), abs=0.1)
    assert TRAJECTORY["s_dpo"][-1] < math.log(4) - 0.1
