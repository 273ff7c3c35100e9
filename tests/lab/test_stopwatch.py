"""Time that adds up."""

import torch

from prefrec_lab.stopwatch import Stopwatch


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
