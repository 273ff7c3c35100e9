"""Losses of the training stages, step by step."""

import json
import math
from pathlib import Path

import pytest

TRAJECTORY = json.loads((Path(__file__).parent / "loss_trajectory.json").read_text())
"""Losses that the tiny runs of `conftest.place` logged when they were known to be right; after a change that is
meant to alter training, the new values are what the failing test prints."""


@pytest.mark.parametrize(("stage", "answers"), [("sft", 60), ("s_dpo", 4)])
def test_losses_follow_the_committed_trajectory(place, stage, answers):
    log = json.loads((getattr(place, stage) / "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses == pytest.approx(TRAJECTORY[stage], abs=1e-3), [round(loss, 6) for loss in losses]
    # Before it learns, a model is indifferent among all items, or among the chosen and the rejected ones.
    assert losses[0] == pytest.approx(math.log(answers), abs=0.1)
    assert losses == sorted(losses, reverse=True)
