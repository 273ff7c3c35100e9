"""Atomic writes: a reader sees the old file or the whole new one, even after a kill or on a full disk.

Digests tell content from names and dates, and show damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape

from prefrec.console import warn
from prefrec.errors import StorageError

Writer = Callable[[Path], object]
"""Function that writes a file at the given path."""

STALE_S = 24 * 3600
"""Seconds without a change after which a draft is stale, if its process cannot be checked."""

SEAL = "seal.json"
"""File that holds the SHA-256 of other files of its folder, and is written after them."""

LARGE = 8 << 20
"""Bytes of a file from which its digest is remembered until the file changes."""
_REMEMBERED = 1000
_LAST_PROCESS = 2**31 - 1

_FULL, _FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
# Parts of messages of libraries that lose the number of an OSError. torch's writer does not even say which error.
_MEANS_FULL = ("No space left on device", "PytorchStreamWriter", "inline_container", "iostream error")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def check_end(path: Path) -> None:
    """Raise OSError for a pipe or a device, which may have no end."""
    if not (path.is_file() or path.is_dir()) and path.exists():
        raise OSError(errno.EINVAL, "a pipe or a device may have no end; write its content to a file", str(path))


def read_whole(path: Path) -> str:
    """Return the UTF-8 text of a file; raise OSError for a pipe or a device, which may have no end."""
    check_end(path)
    return path.read_text(encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return a value as JSON text, in the form of all files."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, and make the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Writer) -> None:
    """Call `write` with a temporary path beside `path`, then move the result to `path` in one step.

    Drafts of `path` that killed processes left are removed first (`clear_drafts`). Raise StorageError if the disk is
    full, or writing is not permitted; `path` is unchanged.
    """
    write_together({path: write})


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it is not there; raise StorageError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
        with tempfile.TemporaryFile(dir=folder):  # it says why not
            return
    except OSError as e:
        reason = e.strerror or str(e)
    raise StorageError(f"{folder}: nothing can be written there ({reason}); name another folder with --out")


def cache_dir() -> Path:
    """Return the cache folder: `$PREFREC_CACHE`, else `~/.cache/prefrec`."""
    return Path(os.environ.get("PREFREC_CACHE", "~/.cache/prefrec")).expanduser()


def content_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of the files in a folder or of a pattern; None if there are none."""
    if path.is_file():
        return file_digest(path)
    digests = {name: file_digest(path / name) for name in folder_files(path, "*")}
    digests |= {f: file_digest(Path(f)) for f in sorted(glob(str(path), recursive=True)) if Path(f).is_file()}
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests else None


def folder_files(folder: Path, pattern: str = "**/*") -> list[str]:
    """Return the paths of the files in a folder that match, without hidden ones and notes for people (`.md`)."""
    files = sorted(p.relative_to(folder) for p in folder.glob(pattern) if p.is_file() and p.suffix != ".md")
    return [p.as_posix() for p in files if not any(part.startswith(".") for part in p.parts)]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. That of a large one is remembered until its size, times or inode change."""
    facts = path.stat()
    seen = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    store, place = cache_dir() / "digests.json", str(path.resolve())
    known = read_json(store) if facts.st_size >= LARGE else {}
    if isinstance(entry := known.pop(place, None), list) and entry[:-1] == seen:
        return str(entry[-1])
    check_end(path)
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if facts.st_size >= LARGE:
        with suppress(OSError, StorageError):
            write_json(store, dict([*known.items(), (place, [*seen, digest])][-_REMEMBERED:]))
    return digest


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name → SHA-256 of files in a folder."""
    return {name: file_digest(folder / name) for name in names}


def altered(folder: Path, sealed: Mapping[str, Any]) -> list[str]:
    """Return the files that a folder lacks, or has with another SHA-256 than in `sealed`."""
    found = set(folder_files(folder))  # the names may come from anybody, so no other is opened
    return [f for f, digest in sealed.items() if f not in found or file_digest(folder / f) != digest]


def read_seal(folder: Path, *needed: str) -> dict[str, Any]:
    """Return name → SHA-256 as the folder's `SEAL` says; None for each of the `needed` that it does not name."""
    sealed = read_json(folder / SEAL).get("files")
    return dict.fromkeys(needed) | (sealed if isinstance(sealed, dict) else {})


def keep(path: Path, write: Writer, key: str = "") -> None:
    """Write a file with a note of its SHA-256 and of the `key` that it is kept for, as `kept_key` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".json")
    note.unlink(missing_ok=True)  # a kill between the two writes must not leave the note of another file
    write_whole(path, write)
    write_json(note, {"key": key, "digest": file_digest(path)})


def kept_key(path: Path) -> str | None:
    """Return the key that a file was kept for; None if it is missing or damaged, with a warning."""
    note = read_json(path.with_suffix(".json"))
    if not (path.is_file() and note):
        return None
    if note.get("digest") != file_digest(path):
        warn(f"{escape(str(path))} is damaged; it is made again")
        return None
    return str(note.get("key"))


def sync(paths: Iterable[Path]) -> None:
    """Put files and folders (their lists of names) on the disk, where a power cut leaves them."""
    for path in paths if os.name != "nt" else ():  # Windows opens no folders, and files only for writing
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def draft_name(path: Path) -> str:
    """Return the name of a draft of `path`, from which `clear_drafts` knows the process that writes it."""
    return f".{path.name}.{_machine()}-{os.getpid()}.tmp"


def clear_drafts(path: Path) -> None:
    """Remove the drafts of `path` that killed processes left, as far as that is permitted.

    A draft of this machine is removed if its process no longer exists. Processes of other machines or containers, or
    from before a restart, cannot be checked. Their drafts are removed if nothing in them has changed for a day.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-(\d+)(\.\w+)?\.tmp")
    with suppress(OSError):
        for draft in path.parent.iterdir():
            if match := pattern.fullmatch(draft.name):
                with suppress(OSError):
                    _clear(draft, match[1], int(match[2]))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any library's failure to write inside this context into a `StorageError` that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as e:
        if error := storage_error(e, path):
            raise error from e
        raise


def storage_error(error: Exception, path: Path | str | None = None) -> StorageError | None:
    """Return a `StorageError` for a full disk, a quota or a missing permission; None for any other error.

    `path` is the file that was being written; None: the one that the error names.
    """
    text, code = str(error), getattr(error, "errno", None)
    if code is None and (number := re.search(r"os error (\d+)", text)):
        code = int(number[1])
    elif code is None and any(part in text for part in _MEANS_FULL):
        code = errno.ENOSPC
    where = path if path is not None else getattr(error, "filename", None) or "a file"
    if code in _FULL:
        remedy = "make room and run the same command again; finished work is kept"
    elif code in _FORBIDDEN:
        remedy = "name another folder, or get permission to write there; nothing was changed"
    else:
        return None
    return StorageError(f"{where} cannot be written: {os.strerror(code)}; {remedy}")


def write_together(writers: Mapping[Path, Writer], stale: Sequence[Path] = ()) -> None:
    """Write files that belong together, in their order; errors are those of `write_whole`.

    Nothing is changed before all drafts are written. Then the `stale` files are removed, and the drafts are moved
    into place. A stale file that is also written last shows that the set is complete.
    """
    drafts = {path: path.with_name(draft_name(path)) for path in writers}
    for path in drafts:
        clear_drafts(path)
    try:
        for path, write in writers.items():
            with writing(path):
                write(drafts[path])
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
    if machine == _machine() and process != os.getpid():
        is_left_over = not psutil.pid_exists(min(process, _LAST_PROCESS))
    else:
        is_left_over = time.time() - max(p.stat().st_mtime for p in (draft, *draft.rglob("*"))) > STALE_S
    if is_left_over and draft.is_dir():
        shutil.rmtree(draft)
    elif is_left_over:
        draft.unlink()


@cache
def _machine() -> str:
    """Return an id of the space of process numbers: this container, until the next restart."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = f"{platform.node()} {start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(4)  # not Linux
    return hashlib.sha256(space.encode()).hexdigest()[:8]
