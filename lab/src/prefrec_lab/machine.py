"""Memory and cores that this process may use, and speed of matrix products."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import torch

from prefrec.cpu.linear import product
from prefrec.resources import PROC, lines_of, numbers
from prefrec_lab.stopwatch import Seconds, Stopwatch

CGROUPS = Path("/sys/fs/cgroup")
"""Linux's files about control groups, which limit containers."""

# Control groups of version 2 and 1: files of limit and usage, and the field of `memory.stat` for cached files, which
# count as usage although the system frees them on demand.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def time_square(square: int, *, device: str, dtype: torch.dtype, least_s: float) -> Seconds:
    """Return the seconds of one product of two matrices of `square` rows and columns (2·square³ FLOPs)."""
    side = torch.randn(square, square, device=device, dtype=dtype)
    return time_product(partial(product, side, side), device=device, least_s=least_s)


def time_product(call: Callable[[], torch.Tensor], *, device: str, least_s: float) -> Seconds:
    """Return the seconds of one product, averaged over at least `least_s` seconds after a warm-up call."""
    call()
    watch = Stopwatch(device)
    while watch.wall < least_s:
        with watch.running():
            for _ in range(3):
                call()
    products = 3 * watch.laps
    return Seconds(watch.wall / products, max(watch.cpu, 1e-9) / products)


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the free memory in bytes, within a container's limit."""
    free = [psutil.virtual_memory().available]
    for folder in _groups("memory", proc, cgroups):
        for limit, usage, idle in _MEMORY:
            most, used = _words(folder / limit), _words(folder / usage)
            if most and used and most[0].isdigit():  # "max" means no limit
                reclaimable = numbers(folder / "memory.stat").get(idle, 0)
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


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root, which all limit it."""
    # Inside a container the names may be the machine's. Of these only the root exists, so it must always be tried.
    for line in lines_of(proc / "self" / "cgroup") or ["0::/"]:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        parts = Path(name).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _words(file: Path) -> list[str]:
    return " ".join(lines_of(file)).split()
