"""Device and peak memory of this process, and the processor's description on Linux."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROC = Path("/proc")
"""Linux's files about processes."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Linux's files with the memory that a container may use, in versions 2 and 1."""


def loaded_torch() -> Any:
    """Return the module torch, or None if nothing has imported it, so that nothing has used a GPU."""
    return sys.modules.get("torch")


def used_device() -> str:
    """Return `cuda` if this process has computed on a GPU, otherwise `cpu`."""
    torch = loaded_torch()
    return "cuda" if torch is not None and torch.cuda.is_initialized() else "cpu"


def reset_peak(device: str) -> None:
    """Reset the peak memory to the current usage."""
    if device == "cuda":
        loaded_torch().cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM := VmRSS
    except OSError:
        return  # the peak is then since the start of the process


def peak_bytes(device: str) -> int:
    """Return the peak memory in bytes since `reset_peak`: of the process (resident), or of torch on the GPU."""
    if device == "cuda":
        return int(loaded_torch().cuda.max_memory_allocated())
    if peak := numbers(Path("/proc/self/status")).get("VmHWM:"):
        return 1024 * peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def memory_bytes(limits: Sequence[Path] = CGROUP_LIMITS) -> int:
    """Return the memory of this machine in bytes, or of its container if that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [line.strip() for file in limits for line in lines_of(file)]
    return min([total, *(int(text) for text in texts if text.isdigit())])  # "max": there is no limit


def processor_says(*names: str, proc: Path = PROC) -> str:
    """Return the first processor's entry with one of these names, such as `model name`; "" if there is none."""
    lines = lines_of(proc / "cpuinfo")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def numbers(file: Path) -> dict[str, int]:
    """Return name → number for the lines that begin with a name and a number."""
    pairs = [line.split()[:2] for line in lines_of(file)]
    return {name: int(value) for name, value in (p for p in pairs if len(p) == 2) if value.isdigit()}


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file; an empty list if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
