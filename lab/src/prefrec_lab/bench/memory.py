"""Memory in use by this process, and its limit."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

import psutil
import torch


def resident_bytes(device: str) -> int:
    """Return the memory in use in bytes: of the process (resident), or of torch on the GPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def give_memory_back() -> None:
    """Return freed memory to the system if the C library can do so (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def limit_memory(most: int) -> None:
    """Limit this process to `most` bytes more than are mapped now; allocations beyond that fail (Linux)."""
    if sys.platform == "linux":
        end = psutil.Process().memory_info().data + most
        resource.setrlimit(resource.RLIMIT_DATA, (end, end))
