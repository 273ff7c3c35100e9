"""Files written in one step: a reader sees the old file or the whole new one, whatever is killed or full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from prefrec.errors import StorageError

Writer = Callable[[Path], object]
"""Writes a file at the path it is given."""

STALE_S = 24 * 3600
"""Seconds without a change after which a draft is left over, where its process cannot be asked for."""

_FULL, _FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
_WRITER_FAILED = {
    errno.ENOSPC: (
        "os error 28",
        "No space left on device",
        "PytorchStreamWriter",
        "inline_container",
        "iostream error",
    ),
    errno.EDQUOT: ("os error 122",),
    errno.EFBIG: ("os error 27",),
    errno.EROFS: ("os error 30",),
    errno.EACCES: ("os error 13",),
}
"""Texts by which libraries tell of an OSError without its number; torch's writer does not say which."""


def read_json(path: Path) -> Any:
    """The JSON value in a file; None where there is no file, or only half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Writer) -> None:
    """Call `write` with a temporary path beside `path` and move the result there in one step.

    First the drafts go that killed processes have left of `path`, as `clear_drafts` says.

    Raises:
        StorageError: there is no room, or no right to write; `path` is as it was.
    """
    _write_drafts({path: write}, None)


def write_sealed(writers: Mapping[Path, Writer], seal: Path, write: Writer, stale: Sequence[Path] = ()) -> None:
    """Write files that belong together, and `seal`, which is there only where they all are of one making.

    Nothing is touched before all of them lie beside their places; then `stale` files of an older making are removed.
    Raises as `write_whole`.
    """
    _write_drafts({**writers, seal: write}, seal, stale)


def draft_name(path: Path) -> str:
    """Name for a draft of `path`, beside it, by which `clear_drafts` knows the process that writes it."""
    return f".{path.name}.{_machine()}-{os.getpid()}.tmp"


def clear_drafts(path: Path) -> None:
    """Remove what killed processes have left beside `path` of files or folders that were to become it.

    A draft that a process of this machine is writing is never touched: it goes when no process has its number any
    more. Another machine's processes (or container's, or those before a restart) cannot be asked for, nor can one
    that had this process's number: their drafts go when nothing in them has changed for a day. What cannot be
    removed stays, and is no error.
    """
    draft = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-(\d+)(\.\w+)?\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if found := draft.fullmatch(name):
                _clear(path.parent / name, found[1], int(found[2]))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside this context a failure to write, of whichever library, is a `StorageError` that names `path`.

    Other errors pass through.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as e:
        if found := storage_error(e, path):
            raise found from e
        raise


def storage_error(error: Exception, path: Path | str | None = None) -> StorageError | None:
    """What a full disk, a quota or a missing right means for the user; None for any other error.

    Args:
        error: from a library or the system.
        path: that was being written; None: as the error says.
    """
    code = getattr(error, "errno", None) or _told(error)
    where = path if path is not None else getattr(error, "filename", None) or "a file"
    if code in _FULL:
        way = "make room and run the same command again; what was finished before is kept"
    elif code in _FORBIDDEN:
        way = "name another folder, or get the right to write there; nothing was changed"
    else:
        return None
    return StorageError(f"{where} cannot be written: {os.strerror(code)}; {way}")


def _write_drafts(writers: Mapping[Path, Writer], seal: Path | None, stale: Sequence[Path] = ()) -> None:
    drafts = {path: path.with_name(draft_name(path)) for path in writers}
    for path in drafts:
        clear_drafts(path)
    try:
        for path, write in writers.items():
            with writing(path):
                write(drafts[path])
        if seal is not None:
            seal.unlink(missing_ok=True)
        for path in stale:
            with writing(path):
                path.unlink(missing_ok=True)
        for path, draft in drafts.items():
            with writing(path):
                os.replace(draft, path)
    finally:
        for draft in drafts.values():
            with suppress(OSError):  # a folder that cannot be written to cannot be tidied either
                draft.unlink()


def _clear(draft: Path, machine: str, process: int) -> None:
    with suppress(OSError):
        if machine == _machine() and process != os.getpid():
            left_over = not _lives(process)
        else:
            left_over = time.time() - max(p.stat().st_mtime for p in (draft, *draft.rglob("*"))) > STALE_S
        if left_over and draft.is_dir():
            shutil.rmtree(draft)
        elif left_over:
            draft.unlink()


@cache
def _machine() -> str:
    """Stands for the numbers that processes have here: until a restart, and in this container; else for nothing."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        told = f"{platform.node()} {start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(4)  # not Linux
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def _told(error: Exception) -> int | None:
    text = str(error)
    return next((code for code, signs in _WRITER_FAILED.items() if any(s in text for s in signs)), None)
