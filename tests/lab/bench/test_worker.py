"""A process of its own: it measures, runs out of memory by itself, and its end is told."""

import sys

import pytest
import torch

from prefrec_lab.bench.job import Job
from prefrec_lab.bench.worker import Worker, WorkerEndedError, out_of_memory
from prefrec_lab.bench.workload import make_workload


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_runs_out_of_memory_alone(settings, tmp_path):
    """More sequences in one pass than the limit holds: told, and the process lives on."""
    asked = settings(batch_size=100, sequences=4096)
    huge = Job(asked, "steps", "published", 19, make_workload(asked, 19))
    assert huge.rows == 100
    with Worker(huge, tmp_path / "log", 1 << 28) as worker:
        worker.ready()
        for _ in range(2):
            with pytest.raises(WorkerEndedError, match=r"out of memory \(limit 0.2 GiB\)") as caught:
                worker.measure()
            assert caught.value.final


def test_a_failure_is_told_and_logged(job, tmp_path):
    broken = job("catalogue", "trl", 1)  # there is no such way
    with Worker(broken, tmp_path / "log", None) as worker:
        worker.ready()
        with pytest.raises(WorkerEndedError, match=r"failed \(exit code 1\); .*log says why") as caught:
            worker.measure()
        assert not caught.value.final
    assert "KeyError: 'trl'" in (tmp_path / "log").read_text()


def test_which_errors_mean_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))
