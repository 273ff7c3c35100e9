"""Write prepared data to a folder and read it back; a half-written folder is recognised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from prefrec.data.types import FORMAT_VERSION, Catalogue, PreparedData, examples_to_frame, frame_to_examples
from prefrec.errors import DataError

PROTOCOL = "protocol.json"
_TABLES = ("items", "interactions", "train", "validation", "test")


def write_prepared(data: PreparedData, folder: Path) -> None:
    """Write five Parquet tables, then `protocol.json`, each whole or not at all.

    An older `protocol.json` is removed first and the new one written last, so that a folder without it is
    known to be unfinished.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to write the prepared data to")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROTOCOL).unlink(missing_ok=True)
    tables = {
        "items": data.catalogue.frame,
        "interactions": data.train_interactions,
        "train": examples_to_frame(data.train),
        "validation": examples_to_frame(data.validation),
        "test": examples_to_frame(data.test),
    }
    for name in _TABLES:
        write_whole(folder / f"{name}.parquet", tables[name].write_parquet)
    text = json.dumps(data.protocol, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / PROTOCOL, lambda path: path.write_text(text, encoding="utf-8"))


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
    found = protocol.get("format_version")
    if found != FORMAT_VERSION:
        raise DataError(
            f"{folder}: format version {found}, this prefrec reads {FORMAT_VERSION}; prepare the data again"
        )
    tables = {name: _read_table(folder / f"{name}.parquet") for name in _TABLES}
    rows = {name: frame_to_examples(tables[name]) for name in ("train", "validation", "test")}
    return PreparedData(
        Catalogue(tables["items"]),
        rows["train"],
        rows["validation"],
        rows["test"],
        tables["interactions"],
        protocol,
    )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path` and move the result there in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_table(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (FileNotFoundError, pl.exceptions.PolarsError, OSError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise DataError(f"{path}: missing or damaged ({reason}); prepare the data again") from None
