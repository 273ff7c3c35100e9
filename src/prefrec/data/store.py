"""Write prepared data to a folder and read it back. A partly written folder is detected."""

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
    ITEM_SCHEMA,
    LOG_SCHEMA,
    PARTS,
    Catalogue,
    PreparedData,
    examples_to_frame,
    frame_to_examples,
)
from prefrec.errors import DataError
from prefrec.files import Writer, write_together

PROTOCOL = "protocol.json"
_TABLES = ("items", "interactions", *PARTS)
# Tables that may be absent. Rows do not depend on them, so `prepared_digest` ignores them.
_OPTIONAL = ("users", "held_out")
# Required columns of each table.
_SCHEMAS: dict[str, Mapping[str, Any]] = {
    "items": ITEM_SCHEMA,
    "interactions": LOG_SCHEMA,
    "held_out": LOG_SCHEMA,
    "users": {"user_id": pl.String},
    **dict.fromkeys(PARTS, EXAMPLE_SCHEMA),
}
# Table → column without duplicates.
_ONCE = {"items": "item_id", "users": "user_id"}


def write_prepared(data: PreparedData, folder: Path) -> None:
    """Write the Parquet tables, then `protocol.json`: a folder without it is unfinished.

    If a write fails, older files stay unchanged. Raise DataError if `folder` is a file, StorageError if the disk is
    full, or writing is not permitted.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to write the prepared data to")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"items": data.catalogue.frame, "interactions": data.train_interactions}
    tables |= {part: examples_to_frame(data.split(part)) for part in PARTS}
    optional = {"users": data.users, "held_out": data.held_out_interactions}
    tables |= {name: frame for name, frame in optional.items() if frame is not None}
    writers: dict[Path, Writer] = {folder / f"{name}.parquet": t.write_parquet for name, t in tables.items()}
    text = json.dumps(data.protocol, indent=2, ensure_ascii=False) + "\n"
    writers[folder / PROTOCOL] = lambda path: path.write_text(text, encoding="utf-8")
    write_together(writers, [folder / PROTOCOL, *(folder / f"{n}.parquet" for n in _OPTIONAL if n not in tables)])


def prepared_digest(folder: Path) -> str:
    """Return the SHA-256 of everything in prepared data that models depend on: rows, items and domain.

    Copying or moving the folder does not change it, nor do the optional tables.
    """
    digest = hashlib.sha256()
    for name in _TABLES:
        with (folder / f"{name}.parquet").open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    domain = json.loads((folder / PROTOCOL).read_text(encoding="utf-8")).get("domain")
    digest.update(f"{FORMAT_VERSION} {domain}".encode())
    return digest.hexdigest()


def read_prepared(folder: Path) -> PreparedData:
    """Read the data that `write_prepared` wrote to `folder`.

    Raise DataError if the folder is missing, unfinished, damaged or of another format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `prefrec prepare {folder}` makes one")
    try:
        protocol = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        started = any((folder / f"{name}.parquet").exists() for name in _TABLES)
        why = "is unfinished" if started else "is not prepared data"
        raise DataError(f"{folder} {why} ({PROTOCOL} is missing); run `prefrec prepare {folder}` again") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{folder / PROTOCOL}: not valid JSON ({e}); run `prefrec prepare {folder}` again") from None
    written = protocol.get("format_version") if isinstance(protocol, dict) else None
    if written != FORMAT_VERSION:
        raise DataError(
            f"{folder}: format version {written}, this prefrec reads {FORMAT_VERSION}; prepare the data again"
        )
    paths = {name: folder / f"{name}.parquet" for name in (*_TABLES, *_OPTIONAL)}
    tables = {n: _read_table(path) for n, path in paths.items() if n not in _OPTIONAL or path.exists()}
    for name, frame in tables.items():
        _check_table(frame, name, paths[name], tables["items"])
    train, validation, test = (frame_to_examples(tables[part]) for part in PARTS)
    log, users, held_out = tables["interactions"], tables.get("users"), tables.get("held_out")
    return PreparedData(Catalogue(tables["items"]), train, validation, test, log, protocol, users, held_out)


def read_items(path: Path) -> Catalogue:
    """Read a table of items with `item_id` and `title`; raise DataError if it is missing or damaged."""
    items = _read_table(path)
    _check_table(items, "items", path, items)
    return Catalogue(items)


def _read_table(path: Path) -> pl.DataFrame:
    try:
        return read_parquet(path)
    except UNREADABLE as e:
        raise DataError(f"{path}: missing or damaged ({first_words(e)}); prepare the data again") from None


def _check_table(frame: pl.DataFrame, name: str, path: Path, items: pl.DataFrame) -> None:
    """Raise DataError if `write_prepared` could not have written this table."""
    for column, kind in _SCHEMAS[name].items():
        if frame.schema.get(column) != kind:
            raise DataError(f"{path}: no column {column!r} of type {kind}; prepare the data again")
        _refuse(frame[column].is_null(), path, f"{column} is empty")
    if name in _ONCE:
        _refuse(frame[_ONCE[name]].is_duplicated(), path, f"another row has the same {_ONCE[name]}")
    if name in PARTS:
        listed = frame.select(pl.col("candidates").list.contains(pl.col("target"))).to_series()
        _refuse(~listed, path, "the target is not in its list")
        for column in ("history", "candidates"):
            listed_items = frame[column].explode().drop_nulls().unique()
            for item in listed_items.filter(~listed_items.is_in(items["item_id"].to_list()))[:1]:
                unknown = frame.select(pl.col(column).list.contains(item)).to_series()
                _refuse(unknown, path, f"item {item!r} is not in items.parquet")


def _refuse(bad: pl.Series, path: Path, why: str) -> None:
    if bad.any():
        raise DataError(f"{path}, row {bad.arg_true()[0]}: {why}; prepare the data again")
