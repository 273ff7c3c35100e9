"""Measure wall time and CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """Wall time and process time (user and system, over all threads of the process), in seconds."""

    wall: float
    cpu: float


class Stopwatch:
    """A stopwatch that sums the time between `start` and `stop`, and waits for a GPU (`cuda`) to finish."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall = self.cpu = 0.0
        self.laps = 0

    def start(self) -> None:
        """Start or continue."""
        self._started = self._now()

    def stop(self) -> None:
        """Stop; `start` continues."""
        now = self._now()
        self.wall += now.wall - self._started.wall
        self.cpu += now.cpu - self._started.cpu
        self.laps += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def read(self) -> Seconds:
        """Return the time so far."""
        return Seconds(self.wall, self.cpu)

    def _now(self) -> Seconds:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return Seconds(time.perf_counter(), time.process_time())
