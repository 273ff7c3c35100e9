"""A stage's folder: what it was made from, whether it is finished, and where an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prefrec import processes
from prefrec.clock import cached_time_credit, peak_bytes, processor_says, reset_peak
from prefrec.console import say
from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json
from prefrec.lm.cpu.linear import linear_backend
from prefrec.lm.models import default_device

STAGE_FILE = "stage.json"
PREVIOUS = ".previous"
"""Ends the name of the folder that keeps the outcome of another key."""
TRAINER_STATE = "trainer_state.json"
"""The last file of a checkpoint that is written."""

SHARED = {"seconds": "shared_seconds", "cpu_seconds": "shared_cpu_seconds"}
"""What a stage took, and what it would have taken beyond that alone."""


def stage_key(**parts: Any) -> str:
    """A hash of everything a stage depends on (JSON values; the keys of earlier stages among them)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_facts(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and date of the files among `paths` and right inside the folders among them, for a key."""
    places = [p.resolve() for p in paths]
    files = [f for p in places for f in (sorted(p.iterdir()) if p.is_dir() else [p]) if f.is_file()]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def is_finished(folder: Path, key: str) -> bool:
    """True where `folder` holds the finished outcome of the stage with this key.

    What was moved aside under this key is brought back first. All processes must call it, and wait here.
    """
    if processes.is_first():
        _bring_back(folder, key)
    processes.wait()
    state = _state(folder)
    return bool(state.get("key") == key and state.get("finished"))


@contextmanager
def stage(folder: Path, key: str, kind: str, config: dict[str, Any], **more: Any) -> Iterator[Path]:
    """The folder to work in. What an interrupted stage of the same key left stays there, to go on from.

    The outcome of another key is moved to `NAME.previous` (of which one is kept), never deleted at once; what lies
    there under the wanted key takes its place. Checkpoints are deleted when the stage is finished. Of many processes
    the first one sees to the folder, and all leave together.

    `stage.json` holds what is given here, `more` too. It says what the stage took, all parts of an interrupted one
    together but those that ended by a kill: `seconds` of wall time, `cpu_seconds` of this process (all its threads),
    and `peak_bytes`, the most memory that the process (on a GPU: torch) held during it. `shared_seconds` and
    `shared_cpu_seconds` are what it would have taken beyond that, had another stage not left it the reference's
    log-probabilities. `environment` is the machine that finished it.

    Raises:
        ConfigError: the folder's name ends in `.previous`; or it, or the one that would be moved away for it, holds
            files but was never a stage's.
    """
    refuse_name(folder.name)
    if not processes.is_first():
        processes.wait()
        yield folder
        processes.wait()
        return
    _bring_back(folder, key)
    state = _state(folder)
    if folder.exists() and state.get("key") != key:
        previous = _previous(folder)
        for place in (folder, previous):
            _refuse_foreign(place, folder)
        _delete(previous)
        folder.rename(previous)
        state = {}
    folder.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {"key": key, "kind": kind, "config": config, **more, "finished": False}
    note |= {name: state.get(name, 0) for name in (*SHARED, "peak_bytes", *SHARED.values())}
    write_json(folder / STAGE_FILE, note)
    device = default_device().type
    reset_peak(device)
    resumed = note["seconds"] > 0  # then the log-probabilities that it finds may be its own, and are counted
    start, cpu_start, credit_start = time.monotonic(), time.process_time(), cached_time_credit()
    processes.wait()
    try:
        yield folder
        note |= {"finished": True, "environment": machine()}
    finally:
        note["seconds"] = round(note["seconds"] + time.monotonic() - start, 1)
        note["cpu_seconds"] = round(note["cpu_seconds"] + time.process_time() - cpu_start, 1)
        note["peak_bytes"] = max(note["peak_bytes"], peak_bytes(device))
        if not resumed:
            note["shared_seconds"] = round(cached_time_credit().wall - credit_start.wall, 1)
            note["shared_cpu_seconds"] = round(cached_time_credit().cpu - credit_start.cpu, 1)
        # What went wrong before is told, not that the disk is too full to note it.
        with nullcontext() if note["finished"] else suppress(OSError):
            write_json(folder / STAGE_FILE, note)
    _drop_checkpoints(folder)
    processes.wait()


def refuse_name(name: str) -> None:
    """Let no stage have a name that belongs to what another one keeps.

    Raises:
        ConfigError: it has.
    """
    if name.endswith(PREVIOUS):
        raise ConfigError(
            f"{name!r} is no name for a stage: {PREVIOUS} is the end of folders in which earlier outcomes are kept"
        )


def taken(state: dict[str, Any], what: str) -> float:
    """What a stage takes by itself, from its `stage.json`: times with a pass that another stage left to it."""
    return float(state[what]) + float(state.get(SHARED.get(what, ""), 0))


def machine() -> dict[str, Any]:
    """Versions and machine: what a figure needs to be made again, beside the recipe."""
    packages = ("prefrec", "torch", "transformers", "peft", "polars", "numpy")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "linear": linear_backend(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


@cache
def _processor() -> str:
    name = processor_says("model name")
    return f"{name} × {os.cpu_count()}" if name else platform.processor()


@cache
def _commit() -> str | None:
    """The commit of the source tree that this package runs from, with a + where files of the package differ."""
    here = Path(__file__).parents[1]
    try:
        inside = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=False
        )
        if inside.returncode:
            return None
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "."], cwd=here, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty else "")


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{PREVIOUS}")


def _bring_back(folder: Path, key: str) -> None:
    """Swap a folder and its `.previous` where that one has the wanted key; end what a kill left half done.

    Neither is deleted: a kill leaves both, one of them perhaps under the name that it has between the two.
    """
    previous, between = _previous(folder), folder.with_name(f".{folder.name}.swapped")
    if between.exists():
        between.rename(previous if folder.exists() else folder)
    if _state(folder).get("key") != key and _state(previous).get("key") == key:
        say(f"{folder.name}: taken back from {previous.name}")
        if folder.exists():
            _refuse_foreign(folder, folder)
            folder.rename(between)
        previous.rename(folder)
        if between.exists():
            between.rename(previous)
    if _state(folder).get("finished"):
        _drop_checkpoints(folder)


def _delete(place: Path) -> None:
    """Delete an outcome; half deleted it is neither taken for a whole one nor for a stranger's."""
    if not place.exists():
        return
    write_json(place / STAGE_FILE, {})
    for part in place.iterdir():
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        elif part.name != STAGE_FILE:
            part.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _drop_checkpoints(folder: Path) -> None:
    for left in folder.glob("checkpoint-*"):
        (left / TRAINER_STATE).unlink(missing_ok=True)  # half deleted it must not be gone on from
        shutil.rmtree(left, ignore_errors=True)


def _refuse_foreign(place: Path, folder: Path) -> None:
    """Let nothing be moved or deleted that is not ours."""
    if place.exists() and not (place.is_dir() and ((place / STAGE_FILE).exists() or not any(place.iterdir()))):
        raise ConfigError(
            f"{folder}: cannot be made, as {place} is there and not from prefrec (no {STAGE_FILE} in it); "
            "name another folder, or move it away"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` in `folder`, or None."""
    found = [p for p in folder.glob("checkpoint-*") if read_json(p / TRAINER_STATE)]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def _state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / STAGE_FILE)
    return state if isinstance(state, dict) else {}
