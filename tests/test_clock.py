"""Time that adds up, and memory since a moment."""

import sys

import torch

from prefrec.clock import Stopwatch, peak_bytes, reset_peak, resident_bytes


def test_the_peak_is_that_since_the_reset():
    """64 MiB that come and go show in the peak, until it is reset."""
    reset_peak("cpu")
    before = resident_bytes("cpu")
    block = torch.ones(1 << 24)
    assert float(block.sum()) == 1 << 24
    del block
    assert peak_bytes("cpu") >= before + (60 << 20)
    if sys.platform == "linux":
        reset_peak("cpu")
        assert peak_bytes("cpu") < before + (60 << 20)


def test_a_stopwatch_adds_up():
    watch = Stopwatch("cpu")
    for _ in range(2):
        with watch.running():
            torch.ones(100, 100) @ torch.ones(100, 100)
    outside = watch.read()
    torch.ones(100, 100) @ torch.ones(100, 100)
    assert watch.read() == outside
    assert watch.laps == 2
    assert outside.wall > 0
