"""CPU time, wall time and peak memory of a part of the work."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Seconds:
    """Wall time and process time (user and system, over all threads of the process), in seconds."""

    wall: float
    cpu: float


class Stopwatch:
    """Adds up the time between `start` and `stop`; on a GPU it waits for the work given to it.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall = self.cpu = 0.0
        self.laps = 0

    def start(self) -> None:
        """Start, or go on."""
        _wait(self.device)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop; `start` goes on from here."""
        _wait(self.device)
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu
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
        """What has been added up."""
        return Seconds(self.wall, self.cpu)


_spared = Seconds(0.0, 0.0)


def spare(took: Seconds) -> None:
    """Note that work which took so long was found done and needed not be done again in this process."""
    global _spared
    _spared = Seconds(_spared.wall + took.wall, _spared.cpu + took.cpu)


def spared() -> Seconds:
    """All that `spare` has noted in this process."""
    return _spared


def reset_peak(device: str) -> None:
    """Let the peak of the memory start anew, at what is in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")  # Linux: VmHWM := VmRSS
    except OSError:
        return  # then the peak is that of the whole process


def peak_bytes(device: str) -> int:
    """Most memory in use since `reset_peak`: of the process (resident), or that torch holds on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _maximum_resident()


def resident_bytes(device: str) -> int:
    """Memory in use now: of the process (resident), or that torch holds on the GPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return _status("VmRSS") or _maximum_resident()


def free_bytes() -> int | None:
    """Memory of the machine that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def limit_memory(most: int) -> None:
    """From now on what would take `most` bytes more than are mapped now fails in this process (Linux)."""
    mapped = _status("VmData")
    if mapped is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (mapped + most, mapped + most))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _maximum_resident() -> int:
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else 1024 * maximum
