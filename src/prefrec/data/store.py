"""Write prepared data to a folder and read it back; a half-written folder is recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
from prefrec.errors import DataError
from prefrec.files import Writer, write_sealed

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
