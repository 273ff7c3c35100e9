"""CPU time, wall time and memory of a part of the work, and the limits of this process."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Linux's files about processes, and about control groups, which limit containers."""

# Control groups of version 2 and 1: files of limit and usage, and the field of `memory.stat` for cached files, which
# count as usage although the system frees them on demand.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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
    if peak := _numbers(Path("/proc/self/status")).get("VmHWM:"):
        return 1024 * peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the free memory in bytes, within a container's limit."""
    free = [psutil.virtual_memory().available]
    for folder in _groups("memory", proc, cgroups):
        for limit, usage, idle in _MEMORY:
            most, used = _words(folder / limit), _words(folder / usage)
            if most and used and most[0].isdigit():  # "max" means no limit
                reclaimable = _numbers(folder / "memory.stat").get(idle, 0)
                free.append(max(0, int(most[0]) - int(used[0]) + reclaimable))
    return min(free)


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the number of cores that this process may use, by its affinity and a container's share (rounded up)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu", proc, cgroups):
        share = _words(folder / "cpu.max")
        share = share or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(share) == 2 and share[0].isdigit():  # "max" and -1 mean no limit
            cores = min(cores, math.ceil(int(share[0]) / int(share[1])))
    return max(1, cores)


def processor_says(*names: str, proc: Path = PROC) -> str:
    """Return the first processor's entry of one of these names, such as `model name`, in Linux; else ""."""
    lines = _lines(proc / "cpuinfo")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root, which all limit it."""
    # Inside a container the names may be the machine's. Of these only the root exists, so it must always be tried.
    for line in _lines(proc / "self" / "cgroup") or ["0::/"]:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        parts = Path(name).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _numbers(file: Path) -> dict[str, int]:
    """Return name → number of the lines that begin with a name and a number."""
    pairs = [line.split()[:2] for line in _lines(file)]
    return {name: int(value) for name, value in (p for p in pairs if len(p) == 2) if value.isdigit()}


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
