"""A stage's folder: the inputs of its result, whether it is finished, and where an interrupted one resumes."""

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
from functools import cache, partial
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
"""End of the name of the folder that keeps the result of another key."""
TRAINER_STATE = "trainer_state.json"
"""The file of a checkpoint that is written last."""
SHARED = {"seconds": "shared_seconds", "cpu_seconds": "shared_cpu_seconds"}
"""Time of a stage → time that it saved because another stage had left it the reference's log-probabilities."""


def stage_key(**parts: Any) -> str:
    """Return a hash of everything that a stage depends on: JSON values, and keys of earlier stages."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_facts(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and date of these files, and of the files directly inside these folders, for a key."""
    places = [p.resolve() for p in paths]
    files = [f for p in places for f in (sorted(p.iterdir()) if p.is_dir() else [p]) if f.is_file()]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def is_finished(folder: Path, key: str) -> bool:
    """Return True if `folder` holds the finished result of the stage with this key.

    A result that was moved aside under this key is brought back first. All processes must call this, and wait.
    """
    if processes.is_first():
        _bring_back(folder, key)
    processes.wait()
    state = read_state(folder)
    return bool(state.get("key") == key and state.get("finished"))


@contextmanager
def stage(folder: Path, key: str, kind: str, config: dict[str, Any], **more: Any) -> Iterator[Path]:
    """Yield the folder to work in, with the files that an interrupted stage of the same key left.

    A result of another key moves to `NAME.previous`. One such folder is kept, and it comes back if its key is wanted
    again. Checkpoints are deleted at the end. Of many processes the first one manages the folder, and all leave
    together.

    `stage.json` holds the arguments, the machine that finished the stage (`environment`), and its costs over all
    parts that were not killed: `seconds` of wall time, `cpu_seconds` of this process (all threads), `peak_bytes` of
    memory (on a GPU: of torch), and the times of `SHARED`.

    Raises:
        ConfigError: the folder's name ends in `.previous`; or this folder, or the one for its old result, holds files
            and was never a stage's.
    """
    refuse_name(folder.name)
    if not processes.is_first():
        processes.wait()
        yield folder
        processes.wait()
        return
    _bring_back(folder, key)
    state = read_state(folder)
    if folder.exists() and state.get("key") != key:
        previous = _previous(folder)
        for path in (folder, previous):
            _refuse_foreign(path, folder)
        _delete(previous)
        folder.rename(previous)
        state = {}
    folder.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {"key": key, "kind": kind, "config": config, **more, "finished": False}
    note |= {name: state.get(name, 0) for name in (*SHARED, "peak_bytes", *SHARED.values())}
    write_json(folder / STAGE_FILE, note)
    device = default_device().type
    reset_peak(device)
    # A resumed stage may find the log-probabilities that it computed itself. Their time is counted already.
    resumed = note["seconds"] > 0
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
        # If the stage failed, a full disk must not hide its error.
        with nullcontext() if note["finished"] else suppress(OSError):
            write_json(folder / STAGE_FILE, note)
    _drop_checkpoints(folder)
    processes.wait()


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a stage's `stage.json`; {} if it is missing or damaged."""
    state = read_json(folder / STAGE_FILE)
    return state if isinstance(state, dict) else {}


def refuse_name(name: str) -> None:
    """Raise ConfigError if a stage has a name that ends like the folders of earlier results."""
    if name.endswith(PREVIOUS):
        raise ConfigError(f"{name!r} cannot name a stage: folders with earlier results end in {PREVIOUS}")


def taken(state: dict[str, Any], what: str) -> float:
    """Return a cost in `stage.json` of a stage by itself: times include what it saved through another stage."""
    return float(state[what]) + float(state.get(SHARED.get(what, ""), 0))


def machine() -> dict[str, Any]:
    """Return versions and machine: what is needed, with the recipe, to compute a figure again."""
    packages = ("prefrec", "torch", "transformers", "peft", "polars", "numpy")
    processor = processor_says("model name")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{processor} × {os.cpu_count()}" if processor else platform.processor(),
        "threads": torch.get_num_threads(),
        "linear": linear_backend(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


@cache
def _commit() -> str | None:
    """Return the commit of the source tree of this package, with a + if files of the package differ."""
    git = partial(subprocess.run, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    try:
        if git(["git", "ls-files", "--error-unmatch", __file__]).returncode:
            return None
        head = git(["git", "rev-parse", "--short=10", "HEAD"])
        dirty = git(["git", "diff", "--quiet", "HEAD", "--", "."]).returncode
    except OSError:
        return None
    return None if head.returncode else head.stdout.strip() + ("+" if dirty else "")


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{PREVIOUS}")


def _bring_back(folder: Path, key: str) -> None:
    """Swap a folder with its `.previous` if that one has the wanted key; complete a swap that a kill interrupted."""
    # Only renames: a kill leaves both folders, one of them perhaps under the name `between`.
    previous, between = _previous(folder), folder.with_name(f".{folder.name}.swapped")
    if between.exists():
        between.rename(previous if folder.exists() else folder)
    if read_state(folder).get("key") != key and read_state(previous).get("key") == key:
        say(f"{folder.name}: taken back from {previous.name}")
        if folder.exists():
            _refuse_foreign(folder, folder)
            folder.rename(between)
        previous.rename(folder)
        if between.exists():
            between.rename(previous)
    if read_state(folder).get("finished"):
        _drop_checkpoints(folder)


def _delete(folder: Path) -> None:
    if not folder.exists():
        return
    # With an empty state a half-deleted result counts neither as whole nor as somebody else's files.
    write_json(folder / STAGE_FILE, {})
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        elif part.name != STAGE_FILE:
            part.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _drop_checkpoints(folder: Path) -> None:
    for left in folder.glob("checkpoint-*"):
        # Without this file a half-deleted checkpoint is not resumed from.
        (left / TRAINER_STATE).unlink(missing_ok=True)
        shutil.rmtree(left, ignore_errors=True)


def _refuse_foreign(path: Path, folder: Path) -> None:
    """Raise ConfigError if `path` holds files that are not of a stage."""
    if path.exists() and not (path.is_dir() and ((path / STAGE_FILE).exists() or not any(path.iterdir()))):
        raise ConfigError(
            f"{folder} cannot be made: {path} exists and is not from prefrec (no {STAGE_FILE} in it); name another "
            "folder, or move it away"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete `checkpoint-N` in `folder`, or None."""
    complete = [p for p in folder.glob("checkpoint-*") if read_json(p / TRAINER_STATE)]
    return max(complete, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
