"""Atomic writes: a reader sees the old file or the complete new one, even after a kill or on a full disk.

Digests identify content independently of names and dates, and reveal damage.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from rich.markup import escape

from prefrec.console import warn
from prefrec.errors import ConfigError, StorageError

Writer = Callable[[Path], object]
"""Function that writes a file at the given path."""

SEAL = "seal.json"
"""File with the SHA-256 of other files in its folder, written after them."""

LARGE = 8 << 20
"""Size in bytes from which a file's digest is cached until the file changes."""
_REMEMBERED = 1000

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# Parts of messages of libraries that drop the number of an OSError. torch's writer does not even name the error.
_MEANS_FULL = ("No space left on device", "PytorchStreamWriter", "inline_container", "iostream error")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def check_end(path: Path) -> None:
    """Raise OSError for a pipe or a device, which may be endless."""
    if not (path.is_file() or path.is_dir()) and path.exists():
        raise OSError(errno.EINVAL, "a pipe or a device may be endless; write its content to a file", str(path))


def read_whole(path: Path) -> str:
    """Return the UTF-8 text of a file; raise OSError for a pipe or a device, which may be endless."""
    check_end(path)
    return path.read_text(encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return a value as JSON text, in the format of all files."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, and create the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Writer) -> None:
    """Call `write` with a temporary path beside `path`, then move the result to `path` in one step.

    Processes that write the same path wait for each other (`drafting`). Raise StorageError, and leave `path`
    unchanged, if it is not a regular file (`check_destination`), the disk is full or writing is not permitted.
    """
    write_together({path: write})


def check_spelling(path: Path) -> None:
    """Raise ConfigError if a path is not UTF-8: neither polars nor a JSON file could name it."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = ascii(str(path))[1:-1]
        raise ConfigError(
            f"{shown}: the path has bytes that are not UTF-8; rename it, or set a UTF-8 locale (LC_ALL=C.UTF-8) if "
            "it has accents"
        ) from None


def check_destination(path: Path) -> None:
    """Raise StorageError if something other than a regular file is at a path that will be written.

    Moving a draft to the place of a device would remove the device. A symbolic link is refused, too: in a folder that
    comes from elsewhere it may lead to any file of this machine. Raise ConfigError as `check_spelling` does.
    """
    check_spelling(path)
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing is there, or the write itself will say what is wrong
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        what = f"a folder; name a file, such as {path / 'NAME'}"
    elif stat.S_ISLNK(mode):
        what = f"a symbolic link, which is neither followed nor replaced; name the file itself: {path.resolve()}"
    else:
        what = "a device, a pipe or a socket, which a file must not replace; name a file, and read it from there"
    raise StorageError(f"{path} cannot be written: it is {what}")


def make_folder(folder: Path) -> None:
    """Create a folder for results if needed; raise StorageError if it cannot be created or written to."""
    check_spelling(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
        with tempfile.TemporaryFile(dir=folder):  # raises an error with the reason
            return
    except OSError as e:
        reason = e.strerror or str(e)
    raise StorageError(f"{folder} cannot be written: {reason}; name another folder with --out")


def cache_dir() -> Path:
    """Return the cache folder: `$PREFREC_CACHE`, else `~/.cache/prefrec`."""
    return Path(os.environ.get("PREFREC_CACHE", "~/.cache/prefrec")).expanduser()


def content_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of the files of a folder or a pattern; None if no file is found.

    The names of files count from the folder, or from the part of a pattern that names one.
    """
    if path.is_file():
        return file_digest(path)
    digests = {name: file_digest(path / name) for name in folder_files(path, "*")}
    folder = next((parent for parent in path.parents if not has_magic(str(parent))), path)
    for name in sorted(glob(str(path), recursive=True)):
        if Path(name).is_file():
            digests[Path(name).relative_to(folder).as_posix()] = file_digest(Path(name))
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests else None


def folder_files(folder: Path, pattern: str = "**/*") -> list[str]:
    """Return the relative paths of a folder's files that match a pattern, except hidden files and `.md` files."""
    names = []
    for path in folder.glob(pattern):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and path.suffix != ".md" and not is_hidden:
            names.append(relative)
    return [name.as_posix() for name in sorted(names)]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. That of a large file is cached until its size, times or inode change."""
    facts = path.stat()
    state = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    store, name = cache_dir() / "digests.json", str(path.resolve())
    known = read_json(store) if facts.st_size >= LARGE else {}
    if isinstance(entry := known.pop(name, None), list) and entry[:-1] == state:
        return str(entry[-1])
    check_end(path)
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if facts.st_size >= LARGE:
        with suppress(OSError, StorageError):
            write_json(store, dict([*known.items(), (name, [*state, digest])][-_REMEMBERED:]))
    return digest


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name → SHA-256 of files in a folder."""
    return {name: file_digest(folder / name) for name in names}


def altered(folder: Path, sealed: Mapping[str, Any]) -> list[str]:
    """Return the files of `sealed` that are missing from a folder, or have another SHA-256."""
    present = set(folder_files(folder))  # `sealed` may come from anybody: files outside of the folder are not opened
    return [f for f, digest in sealed.items() if f not in present or file_digest(folder / f) != digest]


def read_seal(folder: Path, *needed: str) -> dict[str, Any]:
    """Return name → SHA-256 from the folder's `SEAL`; None for `needed` names that it does not contain."""
    sealed = read_json(folder / SEAL).get("files")
    return dict.fromkeys(needed) | (sealed if isinstance(sealed, dict) else {})


def keep(path: Path, write: Writer, key: str = "") -> None:
    """Write a file, and beside it a note with its SHA-256 and the `key` that it belongs to (see `kept_key`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".json")
    note.unlink(missing_ok=True)  # a kill between the two writes must not leave a note of the old file
    write_whole(path, write)
    write_json(note, {"key": key, "digest": file_digest(path)})


def kept_key(path: Path) -> str | None:
    """Return the key of a file written by `keep`; None if the file is missing, or damaged (with a warning)."""
    note = read_json(path.with_suffix(".json"))
    if not (path.is_file() and note):
        return None
    if note.get("digest") != file_digest(path):
        warn(f"{escape(str(path))} is damaged and will be computed again")
        return None
    return str(note.get("key"))


def sync(paths: Iterable[Path]) -> None:
    """Flush files and folders to disk, so that they survive a power failure."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def share(paths: Iterable[Path], like: Path) -> None:
    """Give files the rights of the file `like`: safetensors writes files that only their owner can read."""
    mode = like.stat().st_mode
    for path in paths:
        if path.stat().st_mode != mode:
            path.chmod(mode)


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` for its draft, and remove the folder at the end unless it was moved.

    It has one name and is locked: other writers of the same path wait. The operating system unlocks the folders of
    killed processes, and the next writer of the path empties them.
    """
    folder = _draft_of(path)
    handle = _locked(folder)
    try:
        _empty(folder)
        yield folder
    finally:
        try:
            if _is_open(folder, handle):
                _empty(folder)
                folder.rmdir()
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not unlock it if a fork has a copy
            os.close(handle)


def clear_draft(path: Path) -> None:
    """Remove the draft that a killed writer of `path` left, if there is one; wait for a writer that is at work."""
    if _draft_of(path).is_dir():
        with drafting(path):
            pass


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        else:
            inside.unlink()


def _locked(folder: Path) -> int:
    """Return a locked handle of a folder, which is created if needed."""
    while True:
        with suppress(FileExistsError):  # not `exist_ok`, which fails if another writer removes the folder meanwhile
            folder.mkdir()
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another writer has just removed it
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_open(folder, handle):
            return handle
        os.close(handle)  # another writer has removed it meanwhile, and with it the lock


def _is_open(folder: Path, handle: int) -> bool:
    """Return True if a handle is that of the folder at this path."""
    try:
        return os.path.samestat(folder.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any library's write error in this context into a `StorageError` that names `path`."""
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

    `path` is the file that was being written. Default: the file that the error names. An error of standard output
    names none.
    """
    text, code = str(error), getattr(error, "errno", None)
    if code is None and (number := re.search(r"os error (\d+)", text)):
        code = int(number[1])
    elif code is None and any(part in text for part in _MEANS_FULL):
        code = errno.ENOSPC
    where = path if path is not None else getattr(error, "filename", None) or "standard output"
    if code in _FULL:
        remedy = "free some space and run the same command again; finished work is kept"
    elif code in _FORBIDDEN:
        remedy = "name another folder, or get permission to write there; nothing was changed"
    else:
        return None
    return StorageError(f"{where} cannot be written: {os.strerror(code)}; {remedy}")


def write_together(writers: Mapping[Path, Writer], stale: Sequence[Path] = ()) -> None:
    """Write files that belong together, in order; errors are as in `write_whole`.

    Nothing changes before all drafts are written. Then the `stale` files are removed, and the drafts are moved into
    place. A file that is both stale and written last therefore shows that the set is complete.
    """
    for path in writers:
        check_destination(path)
    with ExitStack() as locks:
        drafts = {}
        for path in sorted(writers):  # in one order, so that two writers of the same files cannot wait for each other
            with writing(path):
                drafts[path] = locks.enter_context(drafting(path)) / path.name
        for path, write in writers.items():
            with writing(path):
                write(drafts[path])
        for path in stale:
            with writing(path):
                path.unlink(missing_ok=True)
        for path in writers:
            with writing(path):
                _move(drafts[path], path)


def _move(draft: Path, path: Path) -> None:
    try:
        os.replace(draft, path)
    except FileNotFoundError:
        reason = "another process removed its draft, or removed the folder"
        raise StorageError(f"{path} cannot be written: {reason}; run the same command again") from None
