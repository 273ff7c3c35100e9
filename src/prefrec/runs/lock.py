"""Allow one command at a time in a run's folder, by locks that end with their process."""

from __future__ import annotations

import fcntl
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
"""Files in a run's folder: the operating system's lock, and its holder for messages."""
_RECIPE = "recipe.yaml"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder and the stages in it (`stage_lock`) for this process, or for its job if it is the first.

    A lock of a process that no longer exists does not count. Raise ConfigError that names the holder if another
    process has one of the locks.
    """
    with ExitStack() as held:
        if is_first():
            # `stage_lock` locks in the opposite order, so that of two commands at least one sees the other.
            held.enter_context(_held(folder.resolve() / LOCK))
            for path in sorted([*folder.resolve().glob(f".*{LOCK}"), *folder.resolve().glob(f"*/.*{LOCK}")]):
                held.enter_context(_held(path))
        yield


@contextmanager
def stage_lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a stage or of prepared data, and the run around it; raise errors of `run_lock`.

    The lock file is beside the folder: a stage may move its folder aside, and a lock in it would move with it.
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
    """Lock a run's folder for a command that reads it; a read-only folder needs no lock."""
    with ExitStack() as held:
        if (folder / _RECIPE).is_file() and os.access(folder, os.W_OK):
            held.enter_context(run_lock(folder))
        yield


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark a folder as in use, as long as the context or its process lasts; `is_used` sees it.

    Many processes may use a folder, and it may be read-only. Where folders cannot be locked, as on some network
    drives, nothing is marked.
    """
    handle = _lock_folder(folder, exclusive=False)
    try:
        yield
    finally:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not unlock it if a fork has a copy
            os.close(handle)


def is_used(folder: Path) -> bool:
    """Return True if a process uses a folder (`in_use`), or if that cannot be known."""
    handle = _lock_folder(folder, exclusive=True)
    if handle is None:
        return True
    os.close(handle)
    return False


def _lock_folder(folder: Path, *, exclusive: bool) -> int | None:
    """Return a handle that locks a folder until it is closed; None if that is not possible."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


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
            f"{where}: another command ({who}) is running here; wait until it has finished, stop it, or choose "
            "another output folder"
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(holder, {"process": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
