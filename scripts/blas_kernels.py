"""Print what numeric tests run on: versions, CPU, and the kernels of torch and of numpy's and scipy's BLAS.

    python scripts/blas_kernels.py          the facts
    python scripts/blas_kernels.py --other  a value of OPENBLAS_CORETYPE for other kernels on this CPU, if any

Results differ by rounding between kernels, so tests that hold with one can fail on another CPU.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import scipy.linalg  # loads the BLAS of scipy, which has a library of its own
import threadpoolctl
import torch

AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")
"""Kernels of OpenBLAS that need AVX-512."""


def other_kernel(used: str, vectors: list[str]) -> str:
    """Return an x86 kernel of OpenBLAS that is not the one in use, from the vector instructions of the CPU."""
    if used in AVX512:
        return "Haswell"
    return "SkylakeX" if "avx512f" in vectors else "Sandybridge"


def cpu() -> tuple[str, list[str]]:
    """Return the name of the CPU, and its vector instructions; none are known but of x86 under Linux."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in lines}
    vectors = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return facts.get("model name", platform.machine()), vectors


def facts() -> str:
    """Return what numeric tests run on, in three lines."""
    name, vectors = cpu()
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    blas = [f"{p['internal_api']} {p['version']}, {p.get('architecture', 'unknown')} kernels" for p in pools]
    return (
        f"Python {platform.python_version()} on {name}: {' '.join(vectors)}\n"
        f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()} kernels\n"
        f"numpy {np.__version__} and scipy {scipy.__version__}: {'; '.join(blas)}"
    )


def other() -> str:
    """Return a kernel of OpenBLAS that is not in use; "" if there is no OpenBLAS, or the CPU is not x86."""
    pools = threadpoolctl.threadpool_info()
    used = {pool["architecture"] for pool in pools if pool["internal_api"] == "openblas"}
    vectors = cpu()[1]
    return other_kernel(used.pop(), vectors) if len(used) == 1 and vectors else ""


if __name__ == "__main__":
    print(other() if "--other" in sys.argv[1:] else facts(), flush=True)  # noqa: T201
