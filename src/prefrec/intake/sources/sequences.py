"""User sequences, the form of most published benchmarks: one line a user, or a JSON object of user → items.

S3-Rec's `Beauty.txt` and P5's `sequential_data.txt` have lines `user item item …`; LC-Rec's and LETTER's
`NAME.inter.json` is a JSON object. The position in the sequence is the only order: there are no times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from prefrec.data.types import LOG_SCHEMA, Catalogue
from prefrec.errors import DataError
from prefrec.intake import readers
from prefrec.intake.config import PrepareConfig
from prefrec.intake.sources.base import Source, SourceKind, check_log, merge_duplicates, name_before, read_catalogue

_JSON = TypeAdapter(dict[str, list[str | int]])


def sequences(config: PrepareConfig) -> Source:
    """Read user sequences and a catalogue with titles; the time of an interaction is its position, from 0.

    The catalogue is a table with a column of titles, or a JSON object of id → title or id → object with a title.
    """
    log_path, items_path = config.required("interactions"), config.required("items")
    log = read_sequences(log_path, config.encoding)
    catalogue = read_catalogue(items_path, config)
    log, notes = check_log(log, catalogue["item_id"], log_path, config.missing_titles)
    log, catalogue, merged = merge_duplicates(log, catalogue, config.duplicate_titles or "number")
    notes = ["no times: items are in the order of the sequences", *notes, *merged]
    return Source("sequences", "generic", Catalogue(catalogue), log, notes)


def read_sequences(path: Path, encoding: str = "utf-8") -> pl.DataFrame:
    """Return the log `user_id, item_id, timestamp` of a file of user sequences, with positions as times.

    Raise DataError if a line has no item, a user has two lines, or the file has no sequence.
    """
    users, items, positions = list[str](), list[str](), list[int]()
    read = _of_json if name_before(path, [".json"]) else _of_lines
    for user, sequence in read(path, encoding):
        users += [user] * len(sequence)
        items += sequence
        positions += range(len(sequence))
    if not users:
        raise DataError(f"{path}: no sequences; expected one line per user: its id, then item ids, oldest first")
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": positions}, schema=LOG_SCHEMA)


def _of_lines(path: Path, encoding: str) -> Iterator[tuple[str, list[str]]]:
    first: dict[str, int] = {}
    for number, line in enumerate(readers.read_text(path, encoding).splitlines(), start=1):
        if not (words := line.split()):
            continue
        user, *sequence = words
        if not sequence:
            raise DataError(f"{path}, line {number}: user {user!r} has no items; expected `user item item …`")
        if user in first:
            raise DataError(
                f"{path}, line {number}: user {user!r} has a sequence in line {first[user]} already; keep one line "
                "per user. A file with one interaction per line is read by source: files"
            )
        first[user] = number
        yield user, sequence


def _of_json(path: Path, encoding: str) -> Iterator[tuple[str, list[str]]]:
    try:
        found = _JSON.validate_json(readers.read_text(path, encoding))
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"])) or "the whole file"
        raise DataError(
            f'{path}: expected one JSON object of user → item ids, such as {{"0": [5, 8, 2]}} ({where}: '
            f"{e.errors()[0]['msg']})"
        ) from None
    for user, sequence in found.items():
        if sequence:
            yield user, [*map(str, sequence)]


SEQUENCES = SourceKind(
    sequences, ("interactions", "items", "columns", "encoding", "duplicate_titles", "missing_titles")
)
