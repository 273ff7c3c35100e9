"""CPU time, wall time and memory of a part of the work."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROC = Path("/proc")
"""Linux's files about processes."""


@dataclass(frozen=True)
class Seconds:
    """Wall time and process time (user and system, over all threads of the process), in seconds."""

    wall: float
    cpu: float


class Stopwatch:
    """A stopwatch that sums the time between `start` and `stop`, and waits for a GPU (`cuda`) to finish its work."""

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


_credit = Seconds(0.0, 0.0)


def credit_cached_time(took: Seconds) -> None:
    """Add the time that cached work took, which this process did not repeat."""
    global _credit
    _credit = Seconds(_credit.wall + took.wall, _credit.cpu + took.cpu)


def cached_time_credit() -> Seconds:
    """Return the sum of all `credit_cached_time` in this process."""
    return _credit


def reset_peak(device: str) -> None:
    """Reset the peak of the memory to what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM := VmRSS
    except OSError:
        return  # the peak is then that of the whole process


def peak_bytes(device: str) -> int:
    """Return the peak memory in bytes since `reset_peak`: of the process (resident), or of torch on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if peak := numbers(Path("/proc/self/status")).get("VmHWM:"):
        return 1024 * peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def processor_says(*names: str, proc: Path = PROC) -> str:
    """Return the first processor's entry of one of these names, such as `model name`, in Linux; else ""."""
    lines = lines_of(proc / "cpuinfo")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def numbers(file: Path) -> dict[str, int]:
    """Return name → number of the lines that begin with a name and a number."""
    pairs = [line.split()[:2] for line in lines_of(file)]
    return {name: int(value) for name, value in (p for p in pairs if len(p) == 2) if value.isdigit()}


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file, or none if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
