"""Write prepared data to a folder and read it back; a half-written folder is recognised."""

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

import polars as pl

from prefrec.data.readers import UNREADABLE, first_words, read_parquet
from prefrec.data.types import (
    EXAMPLE_SCHEMA,
    FORMAT_VERSION,
    Catalogue,
    PreparedData,
    examples_to_frame,
    frame_to_examples,
)
from prefrec.errors import DataError, StorageError

PROTOCOL = "protocol.json"
_TABLES = ("items", "interactions", "train", "validation", "test")

PREPARED_FILES = (*(f"{table}.parquet" for table in _TABLES), PROTOCOL)
"""What prepared data consist of."""

_USERS = "users"
"""A table that is there where attributes of users are known."""
_HELD_OUT = "held_out"
"""A table that folders of an earlier prefrec lack: what users of validation and test rows took before these."""
_MAYBE = (_USERS, _HELD_OUT)
"""Tables that may be absent. No row is made of them: they are no part of `prepared_digest`."""

_ROWS = ("train", "validation", "test")
_LOG = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
_SCHEMAS: dict[str, Mapping[str, Any]] = {
    "items": {"item_id": pl.String, "title": pl.String},
    **dict.fromkeys(("interactions", _HELD_OUT), _LOG),
    _USERS: {"user_id": pl.String},
    **dict.fromkeys(_ROWS, EXAMPLE_SCHEMA),
}
"""Columns that a table must have; it may have more."""

_ONCE = {"items": "item_id", _USERS: "user_id"}
"""Table → column in which no value stands twice."""

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


def write_prepared(data: PreparedData, folder: Path) -> None:
    """Write the Parquet tables and `protocol.json`; where one fails, older ones stay as they are.

    An older `protocol.json` is removed before the tables move to their places and the new one moves last, so that a
    folder without it is known to be unfinished.

    Raises:
        DataError: `folder` is a file.
        StorageError: there is no room, or no right to write.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to write the prepared data to")
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, pl.DataFrame] = {
        "items": data.catalogue.frame,
        "interactions": data.train_interactions,
        "train": examples_to_frame(data.train),
        "validation": examples_to_frame(data.validation),
        "test": examples_to_frame(data.test),
    }
    maybe = {_USERS: data.users, _HELD_OUT: data.held_out_interactions}
    tables |= {name: frame for name, frame in maybe.items() if frame is not None}
    writers: dict[Path, Writer] = {folder / f"{name}.parquet": t.write_parquet for name, t in tables.items()}
    text = json.dumps(data.protocol, indent=2, ensure_ascii=False) + "\n"
    stale = [folder / f"{name}.parquet" for name in _MAYBE if name not in tables]
    write_sealed(writers, folder / PROTOCOL, lambda path: path.write_text(text, encoding="utf-8"), stale)


def prepared_digest(folder: Path) -> str:
    """SHA-256 of what models are made of and asked about in prepared data: the rows, the items, the domain.

    Files that were copied, touched or moved and give the same rows have the same digest, with users and held-out
    interactions or without.
    """
    found = hashlib.sha256()
    for name in _TABLES:
        with (folder / f"{name}.parquet").open("rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    domain = json.loads((folder / PROTOCOL).read_text(encoding="utf-8")).get("domain")
    found.update(f"{FORMAT_VERSION} {domain}".encode())
    return found.hexdigest()


def read_prepared(folder: Path) -> PreparedData:
    """The data that `write_prepared` wrote to `folder`.

    Raises:
        DataError: no such folder, an unfinished or damaged one, or one of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `prefrec prepare {folder}` makes one")
    try:
        protocol = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        started = any((folder / f"{name}.parquet").exists() for name in _TABLES)
        why = "was not written to its end" if started else "is not prepared data"
        raise DataError(f"{folder} {why} ({PROTOCOL} is missing); run `prefrec prepare {folder}` again") from None
    except ValueError as e:
        raise DataError(f"{folder / PROTOCOL}: not valid JSON ({e}); run `prefrec prepare {folder}` again") from None
    except RecursionError:
        raise DataError(f"{folder / PROTOCOL}: not valid JSON; run `prefrec prepare {folder}` again") from None
    if not isinstance(protocol, dict):
        kind = type(protocol).__name__
        raise DataError(
            f"{folder / PROTOCOL}: expected a JSON object, found {kind}; run `prefrec prepare {folder}` again"
        )
    found = protocol.get("format_version")
    if found != FORMAT_VERSION:
        raise DataError(
            f"{folder}: format version {found}, this prefrec reads {FORMAT_VERSION}; prepare the data again"
        )
    told = [name for name in _MAYBE if (folder / f"{name}.parquet").exists()]
    tables = {name: _read_table(folder / f"{name}.parquet") for name in (*_TABLES, *told)}
    for name, frame in tables.items():
        _check_table(frame, name, folder / f"{name}.parquet", tables["items"])
    rows = {name: frame_to_examples(tables[name]) for name in _ROWS}
    return PreparedData(
        Catalogue(tables["items"]),
        rows["train"],
        rows["validation"],
        rows["test"],
        tables["interactions"],
        protocol,
        tables.get(_USERS),
        tables.get(_HELD_OUT),
    )


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


Writer = Callable[[Path], object]
"""Writes a file at the path it is given."""


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


def _read_table(path: Path) -> pl.DataFrame:
    try:
        return read_parquet(path)
    except UNREADABLE as e:
        raise DataError(f"{path}: missing or damaged ({first_words(e)}); prepare the data again") from None


def _check_table(frame: pl.DataFrame, name: str, path: Path, items: pl.DataFrame) -> None:
    """Refuse a table that `write_prepared` would not have written."""
    for column, kind in _SCHEMAS[name].items():
        if column not in frame.columns:
            raise DataError(f"{path}: no column {column!r}; prepare the data again")
        if frame.schema[column] != kind:
            found = frame.schema[column]
            raise DataError(f"{path}: column {column!r} is {found}, expected {kind}; prepare the data again")
        _refuse(frame[column].is_null(), path, f"{column} is empty")
    if name in _ONCE:
        _refuse(frame[_ONCE[name]].is_duplicated(), path, f"another row has the same {_ONCE[name]}")
    if name not in _ROWS:
        return
    listed = frame.select(pl.col("candidates").list.contains(pl.col("target"))).to_series()
    _refuse(~listed, path, "the target is not in its list")
    for column in ("history", "candidates"):
        met = frame[column].explode().drop_nulls().unique()
        for item in met.filter(~met.is_in(items["item_id"].to_list()))[:1]:
            strange = frame.select(pl.col(column).list.contains(item)).to_series()
            _refuse(strange, path, f"item {item!r} is not in items.parquet")


def _refuse(bad: pl.Series, path: Path, why: str) -> None:
    if bad.any():
        raise DataError(f"{path}, row {bad.arg_true()[0]}: {why}; prepare the data again")
