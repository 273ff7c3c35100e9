"""Ready-made examples (a history and the next item), with the split of their files, as in many publications."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from prefrec.data.times import SUBSECOND, time_columns
from prefrec.data.types import LOG_SCHEMA, SPLITS, Catalogue, Window
from prefrec.errors import DataError
from prefrec.intake import readers
from prefrec.intake.config import ColumnNames, PrepareConfig
from prefrec.intake.readers import FILE_ORDER
from prefrec.intake.sources.base import (
    GivenSplit,
    Source,
    SourceKind,
    check_log,
    find_split_files,
    name_before,
    parse_lists,
    read_catalogue,
)
from prefrec.intake.times import parse_timestamps, time_notes
from prefrec.intake.titles import resolve_duplicates

_TABLES = (".csv", ".tsv", ".parquet", ".pq", ".inter", ".jsonl", ".ndjson")
_TITLES = (".json", ".item", ".csv", ".tsv", ".parquet", ".pq")
# Beginnings of the names of title files. RecBole's `.item` may have any name.
_TITLE_NAMES = ("id2name", "id2title", "item", "title", "catalog")
# Default names of the column with an example's items. The second is RecBole's, the last MiniOneRec's.
_LISTS = ("item_ids", "item_id_list", "history", "history_item_id")
# Our column → field of `ColumnNames`.
_FIELDS = {"user_id": "user", "items": "item_list", "target": "item", "timestamp": "timestamp"}


class Row(NamedTuple):
    """An example: a user's items, oldest first, the next item, and its time."""

    user: str
    history: tuple[str, ...]
    target: str
    time: int


class RowFile(NamedTuple):
    """The examples of a file, oldest first, and notes on reading them. If not `timed`, `time` is the row number."""

    rows: list[Row]
    timed: bool
    notes: list[str]


def windows(config: PrepareConfig) -> Source:
    """Read examples with their split, and merge them into a log with each interaction once.

    Training interactions are those that occur in training examples. Examples whose target the user has seen before,
    or with a history shorter than `min_history`, are dropped. Titles are a JSON object of id → title, or a table;
    HTML entities in them are decoded. For splits other than `given`, all examples are merged into one log.
    """
    files, titles = find_window_files(config.path, config.row_files or {}, config.items)
    train_file, min_history = files["train"], config.min_history
    items, renamed, notes = resolve_duplicates(read_catalogue(titles, config), config.duplicate_titles or "number")
    read = {part: read_rows(path, config.columns, config.encoding) for part, path in files.items()}
    rows = {part: [_renamed(row, renamed) for row in file.rows] for part, file in read.items()}
    notes += [note for file in read.values() for note in file.notes]
    refuse_short([len(r.history) for of_split in rows.values() for r in of_split], train_file, min_history)
    sequences = merge_rows(rows["train"], train_file)
    notes.append(
        f"{readers.file_name(train_file)}: {len(rows['train']):,} examples of {len(sequences):,} users contain "
        f"{sum(map(len, sequences.values())):,} interactions"
    )
    timed = all(file.timed for file in read.values())
    if config.split_name != "given":
        _refuse_untimed(config, train_file, timed)
        rows.setdefault("validation", [])
    elif "validation" not in rows:
        in_order = read["train"].timed or config.columns.timestamp == FILE_ORDER
        notes += _cut_validation(rows, config.validation_share, train_file, in_order)
    log = _log(sequences, rows, timed)
    log, dropped = check_log(log, items["item_id"], titles, config.missing_titles)
    if config.split_name != "given":
        return Source("windows", "generic", Catalogue(items), log.drop("learn"), notes + dropped)
    if dropped:
        known = set(items["item_id"])
        for part, of_part in rows.items():
            kept = []
            for row in of_part:
                if row.target in known:
                    kept.append(row._replace(history=tuple(i for i in row.history if i in known)))
            rows[part] = kept
    given, excluded = _given(rows, log, config.history_length, min_history)
    return Source("windows", "generic", Catalogue(items), log.drop("learn"), notes + dropped + excluded, given)


def holds_lists(table: pl.DataFrame, columns: ColumnNames) -> bool:
    """Return True if a table has a column of item lists: its rows are then examples and not interactions."""
    return any(name in table.columns for name in (columns.item_list, *_LISTS) if name)


def find_window_files(
    folder: Path | None, named: Mapping[Any, Path], titles: Path | None = None
) -> tuple[dict[str, Path], Path]:
    """Return the file of each part (validation may have none), and the file of titles.

    Files that are not `named` are searched in `folder`. Raise DataError if a required one is missing or ambiguous.
    """
    searched = folder or Path()
    files = find_split_files(searched, _TABLES, [p for p in SPLITS if p not in named]) if folder else {}
    files |= named
    for part in ("train", "test"):
        if part not in files:
            raise DataError(
                f"{folder}: no {part} examples; expected a file such as {part}.csv, {part}.parquet, {part}.jsonl or "
                f"NAME.{part}.inter, or name it with --row-files {part}=FILE (`row_files` in a recipe)"
            )
    if titles:
        return files, titles
    stems = {p: name_before(p, _TITLES) for p in sorted(searched.glob("*")) if p not in files.values()}
    candidates = [p for p, stem in stems.items() if stem and (p.suffix == ".item" or stem.startswith(_TITLE_NAMES))]
    if len(candidates) != 1:
        raise DataError(
            f"{searched}: expected one file of titles, such as id2name.json, items.csv or NAME.item; found "
            f"{', '.join(p.name for p in candidates) or 'none'}. Name it with --items (`items` in a recipe)"
        )
    return files, candidates[0]


def _renamed(row: Row, renamed: Mapping[str, str]) -> Row:
    history = tuple(renamed.get(i, i) for i in row.history) if renamed else row.history
    return row._replace(history=history, target=renamed.get(row.target, row.target))


def _refuse_untimed(config: PrepareConfig, path: Path, timed: bool) -> None:
    if not timed:
        raise DataError(
            f"{path}: split {config.split_name} needs the times of all examples; name their column with "
            "--columns.timestamp (`columns.timestamp` in a recipe), or remove the setting split"
        )


def _cut_validation(rows: dict[str, list[Row]], share: float, path: Path, in_order: bool) -> list[str]:
    """Move the latest `share` of the training examples to validation, and return a note."""
    train = rows["train"]
    rows["validation"] = []
    if not share:
        return []
    cut = train[-max(1, round(share * len(train)))].time
    rows["train"] = [row for row in train if row.time < cut]
    rows["validation"] = [row for row in train if row.time >= cut]
    if not (in_order and rows["train"]):
        why = "they all have the same time" if in_order else "they have no times"
        raise DataError(
            f"{path}: there are no validation examples, and they cannot be split off the training examples, because "
            f"{why}. Name their file with --row-files validation=FILE (`row_files`), name the column of times with "
            f"--columns.timestamp ({FILE_ORDER} uses the order of the lines), or set --validation-share 0 "
            "(`validation_share`)"
        )
    return [f"validation: the latest {len(rows['validation']):,} of {len(train):,} training examples"]


def _log(sequences: Mapping[str, list[tuple[str, int]]], rows: Mapping[str, list[Row]], timed: bool) -> pl.DataFrame:
    """Return each user's interactions in order, with a column `learn` for those to learn from.

    If `timed`, an item has the time of the first example that contains it, and `SUBSECOND` separates equal times.
    Otherwise its position is the time.
    """
    trained = {(row.user, item) for row in rows["train"] for item in (*row.history, row.target)}
    # Items that occur only in validation examples are not learnt: they are as late as the targets. A validation
    # target that also occurs in a training example cannot be held out.
    pairs = [(user, item, time, (user, item) in trained) for user, taken in sequences.items() for item, time in taken]
    known = {(user, item) for user, item, *_ in pairs}
    later = [*rows["validation"], *rows["test"]]
    for row in sorted(later, key=lambda row: row.time) if timed else later:
        for item in (*row.history, row.target):
            if (row.user, item) not in known:
                known.add((row.user, item))
                pairs.append((row.user, item, row.time, False))
    log = pl.DataFrame(pairs, schema=LOG_SCHEMA | {"learn": pl.Boolean}, orient="row")
    return log.with_columns(pl.int_range(pl.len()).over("user_id").alias(SUBSECOND if timed else "timestamp"))


def _given(
    rows: Mapping[str, list[Row]], log: pl.DataFrame, history_length: int, min_history: int
) -> tuple[GivenSplit, list[str]]:
    """Return the split of the examples, and notes on dropped examples and new targets."""
    learn = log.filter("learn").select("user_id", "item_id")
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for user, item in learn.iter_rows():
        seen[user].add(item)
    windows = {p: make_windows(rows[p], history_length, min_history, {} if p == "train" else seen) for p in SPLITS}
    all_rows = [row for of_split in rows.values() for row in of_split]
    short = sum(len(row.history) < min_history for row in all_rows)
    again = len(all_rows) - short - sum(map(len, windows.values()))
    notes = [f"{short:,} examples with fewer than {min_history} history items were dropped"] if short else []
    notes += [f"{again:,} examples whose target the user had seen before were dropped"] if again else []
    learnt = set(learn["item_id"])
    new = sum(w.target not in learnt for w in windows["test"])
    notes += [f"{new / len(windows['test']):.1%} of the test targets do not occur in training"] if new else []
    return GivenSplit(windows, learn), notes


def read_rows(path: Path, columns: ColumnNames, encoding: str = "utf-8") -> RowFile:
    """Read the examples of a file: CSV, TSV, Parquet, JSON lines or RecBole's `.inter`.

    Lists are written as in JSON, Python or numpy, or as ids separated by spaces. The target is in the column
    `columns.item` or `target` if there is one, otherwise it is the last item of the list. The column `timestamp` may
    be absent; if its name is `FILE_ORDER`, no times are read. Raise DataError if a column is missing, or a value
    cannot be used.
    """
    table = readers.read_table(path, encoding)
    names = _names(table.columns, columns)
    frame = readers.pick_columns(table, names, path, options=_FIELDS)
    if frame.is_empty():
        raise DataError(f"{path}: no examples; expected one example per line")
    if "target" in names:
        frame = readers.check_ids(frame, "target", path, names["target"])
    if "timestamp" in names:
        frame, form = parse_timestamps(frame, "timestamp", path, names["timestamp"], columns.timestamp_format)
        notes = time_notes(form, path)
    else:
        frame = frame.with_columns(pl.int_range(pl.len()).alias("timestamp"))
        notes = [f"{readers.file_name(path)}: no times; examples are in the order of the file"]
    # Without a target column, the last item of the list is the target.
    last, at_least = (None, 0) if "target" in names else (-1, 1)
    frame = frame.with_columns(parse_lists(frame["items"], path, names["items"], at_least))
    frame = frame.sort(time_columns(frame), maintain_order=True)
    targets = frame["target"] if "target" in names else frame["items"].list.last()
    fields = zip(frame["user_id"], frame["items"].to_list(), targets, frame["timestamp"], strict=True)
    rows = [Row(user, tuple(items[:last]), target, time) for user, items, target, time in fields]
    return RowFile(rows, "timestamp" in names, notes)


def addition(sequence: Sequence[str], window: Sequence[str]) -> Sequence[str] | None:
    """Return what `window` adds to the end of `sequence`, or None if the two contradict each other.

    The window may begin with the end of the sequence, lie within it, or have no item in common with it.
    """
    longest = min(len(sequence), len(window))
    overlap = next((k for k in range(longest, 0, -1) if sequence[-k:] == window[:k]), 0)
    # A window that extends the sequence by one item may also lie within it, because users repeat items.
    if overlap >= len(window) - 1:
        return window[overlap:]
    if any(sequence[i : i + len(window)] == window for i in range(len(sequence) - len(window) + 1)):
        return []
    return window[overlap:] if overlap or set(sequence).isdisjoint(window) else None


def merge_rows(rows: Iterable[Row], path: Path) -> dict[str, list[tuple[str, int]]]:
    """Merge overlapping examples into each user's items with their times. Each user's examples are in order.

    Raise DataError, with `path` in the message, if two examples of a user contradict each other.
    """
    items: dict[str, list[str]] = {}
    times: dict[str, list[int]] = {}
    for row in rows:
        sequence, window = items.setdefault(row.user, []), [*row.history, row.target]
        added = addition(sequence, window)
        if added is None:
            raise DataError(
                f"{path}: examples of user {row.user!r} contradict each other: {_shown(window)} does not continue "
                f"{_shown(sequence)}. An example must begin with the user's latest items, repeat an earlier example, "
                "or have only new items: sort the examples by time, or give each session its own user id"
            )
        sequence += added
        times.setdefault(row.user, []).extend([row.time] * len(added))
    return {user: list(zip(items[user], times[user], strict=True)) for user in items}


def make_windows(
    rows: Iterable[Row], history_length: int, min_history: int, seen: Mapping[str, Collection[str]] | None = None
) -> list[Window]:
    """Return the windows of examples with at least `min_history` history items and an unseen target.

    `seen` are further items of each user from before all these examples, beyond those of the histories.
    """
    windows, positions = [], Counter[str]()
    for row in rows:
        position = positions[row.user]
        positions[row.user] += 1
        again = row.target in row.history or row.target in (seen or {}).get(row.user, ())
        if len(row.history) >= min_history and not again:
            windows.append(Window(row.user, position, row.history[-history_length:], row.target))
    return windows


def refuse_short(lengths: Collection[int], where: Path, min_history: int) -> None:
    """Raise DataError if no example has `min_history` history items."""
    longest = max(lengths, default=min_history)
    if min_history > longest:
        raise DataError(
            f"{where}: no example has min_history={min_history} items (longest: {longest}); lower --min-history "
            "(`min_history` in a recipe)"
        )


def _names(existing: Collection[str], columns: ColumnNames) -> dict[str, str]:
    """Return our name → name in the file, without target or timestamp if the file has none."""
    defaults = ColumnNames()
    lists = columns.item_list or next((c for c in _LISTS if c in existing), _LISTS[0])
    names = {"user_id": columns.user, "items": lists}
    # A column that the user named is required; default names are optional.
    is_named = columns.item != defaults.item
    usual = [c for c in (defaults.item, "target") if c in existing]
    target = columns.item if is_named else usual[0] if usual else None
    if target:
        names["target"] = target
    if columns.timestamp != FILE_ORDER and (columns.timestamp in existing or columns.timestamp != defaults.timestamp):
        names["timestamp"] = columns.timestamp
    return names


def _shown(items: Sequence[str]) -> str:
    return f"[{'…, ' if len(items) > 12 else ''}{', '.join(items[-12:])}]"


WINDOWS = SourceKind(
    windows,
    takes=("items", "columns", "encoding", "row_files", "validation_share", "duplicate_titles", "missing_titles"),
    given=True,
    splits=True,
)
