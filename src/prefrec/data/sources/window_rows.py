"""Rows of a history and the next item: reading, merging overlapping ones, and making windows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from prefrec.data import readers
from prefrec.data.config import ColumnNames
from prefrec.data.readers import FILE_ORDER
from prefrec.data.types import Window
from prefrec.errors import ConfigError, DataError

JSON_LINES = (".jsonl", ".ndjson")
# Default names of the column with a row's items. The second is RecBole's.
_LISTS = ("item_ids", "item_id_list", "history")
# Column of the rows → field of `ColumnNames`.
_FIELDS = {"user_id": "user", "items": "item_list", "target": "item", "timestamp": "timestamp"}
_ID = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"\[\]()]+)""")
# The default history length, accepted even if no row is that long.
_USUAL = 10


class Row(NamedTuple):
    """A user's items, oldest first, and the next one; `time` is that of the target."""

    user: str
    history: tuple[str, ...]
    target: str
    time: int


class RowFile(NamedTuple):
    """The rows of a file, oldest first, and notes on reading them. If not `timed`, `time` numbers the rows."""

    rows: list[Row]
    timed: bool
    notes: list[str]


def read_rows(path: Path, columns: ColumnNames, encoding: str = "utf-8") -> RowFile:
    """Read the rows of a file: CSV, TSV, Parquet, JSON lines or RecBole's `.inter`.

    Lists are written as in JSON, Python or numpy, or as ids separated by spaces. The target is in the column
    `columns.item` or `target` if there is one, else it is the last of the list. The column `timestamp` may be absent;
    `FILE_ORDER` as its name reads no times.

    Raise DataError if a column is missing, or a value cannot be used.
    """
    json_lines = path.name.removesuffix(".gz").endswith(JSON_LINES)
    table = _json_table(path) if json_lines else readers.read_table(path, encoding)
    names = _names(table.columns, columns)
    frame = readers.pick_columns(table, names, path, options=_FIELDS)
    if frame.is_empty():
        raise DataError(f"{path}: no rows; expected one line per row")
    if "target" in names:
        frame = readers.check_ids(frame, "target", path, names["target"])
    if "timestamp" in names:
        frame, notes = readers.parse_timestamps(frame, "timestamp", path, names["timestamp"])
    else:
        frame = frame.with_columns(pl.int_range(pl.len()).alias("timestamp"))
        notes = [f"{path.name}: no times; rows are taken in the order of the file"]
    lists = [_ids(value, path) for value in frame["items"].to_list()]
    # Without a column of targets, the last item of the list is the target.
    last, at_least = (None, 0) if "target" in names else (-1, 1)
    bad = pl.Series([ids is None or len(ids) < at_least for ids in lists])
    expected = "a list of item ids, such as [1, 2, 3] or 1 2 3"
    readers.refuse_bad(frame["items"], bad, path, names["items"], expected)
    frame = frame.with_columns(pl.Series("items", lists, dtype=pl.List(pl.String)))
    frame = frame.sort(readers.time_columns(frame), maintain_order=True)
    targets = frame["target"] if "target" in names else frame["items"].list.last()
    fields = zip(frame["user_id"], frame["items"].to_list(), targets, frame["timestamp"], strict=True)
    rows = [Row(user, tuple(items[:last]), target, time) for user, items, target, time in fields]
    return RowFile(rows, "timestamp" in names, notes)


def addition(sequence: Sequence[str], window: Sequence[str]) -> Sequence[str] | None:
    """Return what `window` adds to the end of `sequence`, or None if the two contradict each other.

    The window may begin with the end of the sequence, lie within it, or share no item with it.
    """
    longest = min(len(sequence), len(window))
    overlap = next((k for k in range(longest, 0, -1) if sequence[-k:] == window[:k]), 0)
    # A window that goes one step beyond the end may also lie within the sequence, because users take items again.
    if overlap >= len(window) - 1:
        return window[overlap:]
    if any(sequence[i : i + len(window)] == window for i in range(len(sequence) - len(window) + 1)):
        return []
    return window[overlap:] if overlap or set(sequence).isdisjoint(window) else None


def merge_rows(rows: Iterable[Row], path: Path) -> dict[str, list[tuple[str, int]]]:
    """Return each user's items with their times, merged from overlapping rows. Each user's rows are in order.

    Raise DataError if two rows of a user contradict each other. The message names `path`.
    """
    items: dict[str, list[str]] = {}
    times: dict[str, list[int]] = {}
    for row in rows:
        sequence, window = items.setdefault(row.user, []), [*row.history, row.target]
        added = addition(sequence, window)
        if added is None:
            raise DataError(
                f"{path}: the rows of user {row.user!r} contradict each other: {_shown(window)} does not continue "
                f"{_shown(sequence)}. A row must begin with the user's latest items, repeat an earlier row, or share "
                "no item with the rows before it: order the rows by time, or give each session a user id of its own"
            )
        sequence += added
        times.setdefault(row.user, []).extend([row.time] * len(added))
    return {user: list(zip(items[user], times[user], strict=True)) for user in items}


def make_windows(
    rows: Iterable[Row], history_length: int, min_history: int, taken: Mapping[str, Collection[str]] | None = None
) -> list[Window]:
    """Return the windows of rows with at least `min_history` items whose target the user did not take before.

    A window's position counts the rows of its user. `taken` are each user's items from before all these rows, in
    addition to those of the histories.
    """
    windows, positions = [], Counter[str]()
    for row in rows:
        position = positions[row.user]
        positions[row.user] += 1
        again = row.target in row.history or row.target in (taken or {}).get(row.user, ())
        if len(row.history) >= min_history and not again:
            windows.append(Window(row.user, position, row.history[-history_length:], row.target))
    return windows


def check_lengths(lengths: Collection[int], where: Path, history_length: int, min_history: int) -> None:
    """Raise an error if no row has `min_history` items, or `history_length` exceeds 10 and the longest row."""
    longest = max(lengths, default=0)
    if history_length > max(longest, _USUAL):
        raise ConfigError(
            f"history_length: {history_length} is too long, since the windows in {where} have at most {longest} "
            "titles; lower it (--history-length, `history_length` in a recipe) or leave it out"
        )
    if lengths and min_history > longest:
        raise DataError(
            f"{where}: no window has min_history={min_history} titles (longest: {longest}); lower --min-history "
            "(`min_history` in a recipe)"
        )


def _json_table(path: Path) -> pl.DataFrame:
    """Return JSON lines as a table of text; values other than text and null are written as JSON."""
    rows = [row for _, row in readers.read_json_lines(path)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    plain = (str, type(None))
    texts = {
        n: [v if isinstance(v, plain) else json.dumps(v, ensure_ascii=False) for v in c] for n, c in columns.items()
    }
    return pl.DataFrame(texts, schema=dict.fromkeys(names, pl.String))


def _names(existing: Collection[str], columns: ColumnNames) -> dict[str, str]:
    """Return our name → name in the file, without target or time if the file has none."""
    defaults = ColumnNames()
    lists = columns.item_list or next((c for c in _LISTS if c in existing), _LISTS[0])
    names = {"user_id": columns.user, "items": lists}
    # A name that the user chose is required; the default ones are optional.
    own_target = columns.item != defaults.item
    target = columns.item if own_target else next((c for c in (defaults.item, "target") if c in existing), None)
    if target:
        names["target"] = target
    if columns.timestamp != FILE_ORDER and (columns.timestamp in existing or columns.timestamp != defaults.timestamp):
        names["timestamp"] = columns.timestamp
    return names


def _ids(value: Any, path: Path) -> list[str] | None:
    """Return the ids of a list, or of the text of one; None if it is not a list."""
    if value is None:
        return []
    if isinstance(value, str):
        value = _parsed(value.strip(), path)
    if not isinstance(value, list):
        return None
    ids = [str(int(v)) if isinstance(v, float) and v.is_integer() else v for v in value]
    texts = [str(v).strip() for v in ids if isinstance(v, str | int) and not isinstance(v, bool)]
    return texts if len(texts) == len(ids) and all(texts) else None


def _parsed(text: str, path: Path) -> Any:
    """Return the JSON in a text, or the ids between brackets, commas and spaces; None if brackets do not pair."""
    if text.startswith("["):
        with suppress(DataError):
            return readers.load_json(text, path)
    if text[:1] + text[-1:] not in ("[]", "()") and not {*"[]()"}.isdisjoint(text[:1] + text[-1:]):
        return None
    return ["".join(groups) for groups in _ID.findall(text)]


def _shown(items: Sequence[str]) -> str:
    return f"[{'…, ' if len(items) > 12 else ''}{', '.join(items[-12:])}]"
