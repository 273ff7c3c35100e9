"""One run per folder: a lock that ends with its process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json, writing
from prefrec.processes import is_first

LOCK, HOLDER = ".lock", ".lock.json"
"""Files in a run's folder: the lock of the operating system, and who holds it, for messages."""


@contextmanager
def run_lock(folder: Path, *, beside: bool = False) -> Iterator[None]:
    """Hold a run's folder for this process, or for the job whose first process this is.

    With `beside` its files lie next to the folder: a stage may move its own folder aside, and a lock in it would move
    along. The lock of a process that no longer exists does not count. Raise ConfigError, with the holder, if another
    process has it.
    """
    if not is_first():
        yield
        return
    at = folder.resolve()
    path, holder = (at.with_name(f".{at.name}{f}") if beside else at / f for f in (LOCK, HOLDER))
    lock = FileLock(path)
    try:
        with writing(path):
            lock.acquire(timeout=0)
    except Timeout:
        who = ", ".join(f"{name} {value}" for name, value in read_json(holder).items()) or "another process"
        raise ConfigError(
            f"{folder}: another run ({who}) works here; wait for its end, stop it, or name another output folder"
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(holder, {"process": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
