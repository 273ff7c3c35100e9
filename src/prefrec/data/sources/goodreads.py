"""Goodreads: the UCSD Book Graph files as published, and a folder of ready-made windows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefrec.console import track
from prefrec.data.config import PrepareConfig
from prefrec.data.readers import first_of, read_json_lines
from prefrec.data.sources.base import GivenSplit, Source, check_log, clean_catalogue, merge_duplicates
from prefrec.data.sources.window_rows import Row, check_lengths, make_windows
from prefrec.data.titles import is_blank, normal_title
from prefrec.data.types import ITEM_SCHEMA, LOG_SCHEMA, Catalogue
from prefrec.errors import DataError

_DATE = "%a %b %d %H:%M:%S %z %Y"
_FIELDS = ("user_id", "book_id", "is_read", "rating", "date_added")


def goodreads(config: PrepareConfig) -> Source:
    """Read a genre of the UCSD Book Graph: `goodreads_interactions_*.json.gz` and `goodreads_books_*.json.gz`.

    Both are read as streams. The time of an interaction is `date_added`. A rating of 0 means no rating. Unread books
    on a user's shelf count as touched, so they are never negatives of that user. Editions of one work share a title
    and are merged by default.
    """
    shelf_path = config.interactions or _find(config.required("path"), "interactions")
    books_path = config.items or _find(config.required("path"), "books")
    shelf = _shelf(shelf_path)
    items = _books(books_path, set(shelf["item_id"].unique().to_list()))
    shelf, dropped = check_log(shelf, items["item_id"], shelf_path, config.missing_titles)
    items = clean_catalogue(items, books_path)
    shelf, items, merged = merge_duplicates(shelf, items, config.duplicate_titles or "merge")
    notes = dropped + merged
    log = shelf.filter(pl.col("is_read")) if config.read_only else shelf
    if config.read_only:
        notes.append(f"{len(shelf) - len(log)} of {len(shelf)} shelved books were not read and are left out")
    if log.is_empty():
        raise DataError(
            f"{shelf_path}: no book is marked as read; keep all shelved books with --no-read-only "
            "(`read_only: false` in a recipe)"
        )
    touched = shelf.select("user_id", "item_id")
    return Source("goodreads", "books", Catalogue(items), log.drop("is_read"), notes, touched=touched)


def goodreads_windows(config: PrepareConfig) -> Source:
    """Read windows of 10 titles and the next one, split 80/10/10 by `group` at random with `config.seed`.

    `config.path` has `windows_train.jsonl` and `windows_valid_recovered.jsonl`, one JSON object per line: `history`
    (titles), `target` (title), `group`. A group is roughly a user, and the order of its windows is unknown. Some
    groups span both files, so each group is assigned to one part and the files' own split is ignored. Titles that
    differ only in case or spacing are one book. Ids are numbered in a meaningless order, because the order of
    appearance would reveal the next book. Windows with the target in the history, or with fewer than `min_history`
    titles, are dropped.
    """
    folder, min_history = config.required("path"), config.min_history
    rows = list(_window_rows(folder))
    lengths = [len(row["history"]) for row in rows]
    check_lengths(lengths, folder, config.history_length, min_history)
    spellings = dict.fromkeys(title for row in rows for title in (*row["history"], row["target"]))
    books: dict[str, str] = {}
    for title in spellings:
        books.setdefault(normal_title(title), title)
    # Sorted by a hash of the title, so that ids follow neither the order of appearance nor the alphabet.
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=16).digest() for name in books}
    ids = {name: str(n) for n, name in enumerate(sorted(books, key=hashes.__getitem__))}
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        *history, target = (ids[normal_title(t)] for t in (*row["history"], row["target"]))
        group = str(row["group"])
        groups[group].append(Row(group, tuple(history), target, 0))
    repeated = sum(row.target in row.history for own in groups.values() for row in own)
    notes = [f"{repeated} windows whose target is in the history are left out"]
    short = sum(length < min_history for length in lengths)
    notes += [f"{short} windows of fewer than {min_history} titles are left out"] if short else []
    notes += [f"{len(spellings) - len(books)} spellings differ in case or spacing only and count as one book"]
    frame = pl.DataFrame({"item_id": list(ids.values()), "title": [books[name] for name in ids]})
    items = clean_catalogue(frame, folder)
    log, given = _split_groups(groups, config)
    return Source("goodreads-windows", "books", Catalogue(items), log, notes, given)


def _find(folder: Path, kind: str) -> Path:
    """Return the path of the file of interactions or books in `folder`."""
    files = sorted(folder.glob(f"goodreads_{kind}*.json*"))
    if len(files) != 1:
        raise DataError(
            f"{folder}: expected one goodreads_{kind}_<genre>.json.gz, found "
            f"{', '.join(p.name for p in files) or 'none'}; name the files with --interactions and --items "
            "(`interactions`, `items` in a recipe)"
        )
    return files[0]


def _shelf(path: Path) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _FIELDS}
    for values in _fields(path, _FIELDS):
        for name, value in zip(_FIELDS, values, strict=True):
            columns[name].append(value)
    dates = pl.Series(columns["date_added"], dtype=pl.String, strict=False)
    times = dates.str.to_datetime(_DATE, time_unit="us", time_zone="UTC", strict=False).dt.epoch("s")
    if times.null_count():
        bad = times.is_null()
        raise DataError(
            f"{path}, row {bad.arg_true()[0] + 1}, date_added: {first_of(dates, bad)!r} is not like "
            "'Wed Jan 10 10:24:35 -0800 2018'"
        )
    ratings = pl.Series(columns["rating"], dtype=pl.Float64, strict=False)
    for row in ratings.is_null().arg_true().to_list():
        given = columns["rating"][row]
        if given not in (None, ""):
            raise DataError(f"{path}, row {row + 1}, rating: {given!r} is not a number; correct or drop the line")
    return pl.DataFrame(
        {
            "user_id": pl.Series(columns["user_id"], dtype=pl.String, strict=False),
            "item_id": pl.Series(columns["book_id"], dtype=pl.String, strict=False),
            "timestamp": times,
            "rating": ratings.replace(0.0, None),
            "is_read": pl.Series(columns["is_read"], dtype=pl.Boolean, strict=False).fill_null(False),
        }
    )


def _books(path: Path, wanted: set[str]) -> pl.DataFrame:
    """Return id and title of the `wanted` books that have a title."""
    books = ((book, title.strip()) for book, title in _fields(path, ("book_id", "title")))
    rows = [(book, title) for book, title in books if book in wanted and not is_blank(title)]
    return pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row")


def _fields(path: Path, names: tuple[str, ...]) -> Iterator[list[Any]]:
    """Yield these fields of each line, with ids and titles as text."""
    for line, row in track(read_json_lines(path), f"reading {path.name}"):
        try:
            values = [_text(row[n], n, path, line) if n in ("user_id", "book_id", "title") else row[n] for n in names]
        except KeyError as e:
            raise DataError(f"{path}, line {line}: no field {e.args[0]!r}; there are {', '.join(row)}") from None
        yield values


def _text(value: Any, field: str, path: Path, line: int) -> str:
    if field == "title" and not value:
        return ""
    if not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{path}, line {line}: {field} is {value!r}, expected text or a number; fix or remove the line"
        )
    return str(value)


def _window_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in (folder / "windows_train.jsonl", folder / "windows_valid_recovered.jsonl"):
        for line, row in read_json_lines(path):
            history = row.get("history")
            titles = [*history, row.get("target")] if isinstance(history, list) else [None]
            if "group" not in row or not all(isinstance(t, str) and not is_blank(t) for t in titles):
                raise DataError(f"{path}, line {line}: expected history (titles), target (title) and group")
            yield row


def _split_groups(groups: Mapping[str, list[Row]], config: PrepareConfig) -> tuple[pl.DataFrame, GivenSplit]:
    """Return each group's distinct items in order of appearance, timed by a running number, and the split."""
    log: list[tuple[str, str, int]] = []
    for group, rows in groups.items():
        distinct = dict.fromkeys(item for row in rows for item in (*row.history, row.target))
        log += [(group, item, number) for number, item in enumerate(distinct)]
    frame = pl.DataFrame(log, schema=LOG_SCHEMA, orient="row")
    names = list(groups)
    shuffled = [names[i] for i in np.random.default_rng([config.seed, 3]).permutation(len(names))]
    train, test = int(len(names) * 0.8), int(len(names) * 0.9)
    parts = {"train": shuffled[:train], "validation": shuffled[train:test], "test": shuffled[test:]}
    windows = {
        part: make_windows((r for name in own for r in groups[name]), config.history_length, config.min_history)
        for part, own in parts.items()
    }
    learn = frame.filter(pl.col("user_id").is_in(parts["train"])).select("user_id", "item_id")
    return frame, GivenSplit(windows, learn, ordered=False)
