"""CPU time, wall time and peak memory of a part of the work, and what the system lets this process use of both."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Where Linux tells of processes, and of control groups, by which containers limit them."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of a control group of version 2 and of version 1: files of its limit and its usage, and the field of `memory.stat`
for what of the usage gives way when memory is wanted: files that were read."""


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


def give_memory_back() -> None:
    """Let the system have what this process has freed, where the C library can do so (glibc); else it is kept."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Memory that can be had without swapping, of the machine and within a container's limit.

    Args:
        proc: where Linux tells of processes.
        cgroups: where it tells of control groups.

    Returns:
        bytes; None where the system does not say.
    """
    available = _told(proc / "meminfo").get("MemAvailable:")
    free = [] if available is None else [1024 * available]
    for folder in _groups("memory", proc, cgroups):
        for limit, usage, idle in _MEMORY:
            most, used = _words(folder / limit), _words(folder / usage)
            if most and used and most[0].isdigit():
                let_go = _told(folder / "memory.stat").get(idle, 0)
                free.append(max(0, int(most[0]) - int(used[0]) + let_go))
    return min(free, default=None)


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Cores that this process may use: those it is bound to, or fewer where a container's share of time is less.

    A share of one and a half counts as two.

    Args:
        proc: where Linux tells of processes.
        cgroups: where it tells of control groups.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu", proc, cgroups):
        share = _words(folder / "cpu.max")
        share = share or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(share) == 2 and share[0].isdigit():  # not "max" or -1, which is no limit
            found = min(found, math.ceil(int(share[0]) / int(share[1])))
    return max(1, found)


def processor_says(*names: str, proc: Path = PROC) -> str:
    """What Linux tells of the first processor under one of these names, such as `model name`; else ""."""
    lines = _lines(proc / "cpuinfo")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def limit_memory(most: int) -> None:
    """From now on what would take `most` bytes more than are mapped now fails in this process (Linux)."""
    mapped = _status("VmData")
    if mapped is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (mapped + most, mapped + most))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status(field: str) -> int | None:
    found = _told(_STATUS).get(f"{field}:")
    return None if found is None else 1024 * found


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own up to the root; those above limit it too.

    Inside a container the names may be those of the machine, of which the root alone is there.
    """
    for line in _lines(proc / "self" / "cgroup") or ["0::/"]:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        parts = Path(name).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _told(file: Path) -> dict[str, int]:
    """Numbers by their names, from lines that each begin with a name and a number."""
    pairs = [line.split()[:2] for line in _lines(file)]
    return {name: int(value) for name, value in (p for p in pairs if len(p) == 2) if value.isdigit()}


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _maximum_resident() -> int:
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else 1024 * maximum
