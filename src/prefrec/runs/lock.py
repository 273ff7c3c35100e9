"""One command at a time in a run's folder: locks that end with their process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json, writing
from prefrec.processes import is_first

LOCK, HOLDER = ".lock", ".lock.json"
"""Files in a run's folder: the lock of the operating system, and who holds it, for messages."""
_RECIPE = "recipe.yaml"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process, or for the job whose first process this is.

    Locks of stages in it (`stage_lock`) are held, too. The lock of a process that no longer exists does not count.
    Raise ConfigError, with the holder, if another process has one of them.
    """
    with ExitStack() as held:
        if is_first():
            # `stage_lock` takes them in the other order, so that of two commands at least one sees the other.
            held.enter_context(_held(folder.resolve() / LOCK))
            for path in sorted([*folder.resolve().glob(f".*{LOCK}"), *folder.resolve().glob(f"*/.*{LOCK}")]):
                held.enter_context(_held(path))
        yield


@contextmanager
def stage_lock(folder: Path) -> Iterator[None]:
    """Hold the folder of one stage or of prepared data, and the run's around it; errors are those of `run_lock`.

    Its own lock lies beside it: a stage may move its folder aside, and a lock in it would move along.
    """
    at = folder.resolve()
    with ExitStack() as held:
        if is_first():
            held.enter_context(_held(at.with_name(f".{at.name}{LOCK}")))
            for run in at.parents[:2]:  # RUN/sft and RUN/align/NAME
                if (run / HOLDER).exists() or (run / _RECIPE).exists():
                    held.enter_context(_held(run / LOCK))
        yield


@contextmanager
def reader_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder like `run_lock` for a command that reads it; a folder that is read-only cannot change."""
    with ExitStack() as held:
        if (folder / _RECIPE).is_file() and os.access(folder, os.W_OK):
            held.enter_context(run_lock(folder))
        yield


@contextmanager
def _held(path: Path) -> Iterator[None]:
    lock, holder = FileLock(path), path.with_name(f"{path.name}.json")
    try:
        with writing(path):
            lock.acquire(timeout=0)
    except Timeout:
        who = ", ".join(f"{name} {value}" for name, value in read_json(holder).items()) or "another process"
        where = path.parent if path.name == LOCK else path.with_name(path.name[1 : -len(LOCK)])
        raise ConfigError(
            f"{where}: another run ({who}) is running here; wait until it has finished, stop it, or "
            "name another output folder"
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(holder, {"process": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
