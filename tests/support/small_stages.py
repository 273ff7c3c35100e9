"""Fixtures that the tests of stages and of whole runs share."""

from contextlib import contextmanager
from unittest import mock

import pytest

from prefrec.stages.language_model import LMStage


@pytest.fixture
def entries(adapter, data, recipe):
    """The model before training, and with that adapter."""
    return [LMStage(name, weights, data, recipe.model) for name, weights in (("zero-shot", None), ("sft", adapter))]


@pytest.fixture
def stop_after():
    """A context in which training must stop: of a stage or any, right after step n, before a checkpoint of it."""
    from prefrec.training.progress import ProgressCallback  # needs torch

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
