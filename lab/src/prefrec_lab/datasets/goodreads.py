"""Goodreads: the UCSD Book Graph files as published, and a folder of ready-made windows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data.titles import normal_title
from prefrec.data.types import LOG_SCHEMA, Catalogue
from prefrec.errors import ConfigError, DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.readers import parse_numbers, pick_columns, read_json_rows, refuse_bad
from prefrec.intake.sources.base import (
    GivenSplit,
    Source,
    SourceKind,
    check_log,
    clean_catalogue,
    merge_duplicates,
    titled,
    without_entities,
)
from prefrec.intake.sources.windows import Row, make_windows, refuse_short
from prefrec_lab.datasets.titles import is_blank

_DATE = "%a %b %d %H:%M:%S %z %Y"
_FIELDS = {
    "user_id": "user_id",
    "item_id": "book_id",
    "timestamp": "date_added",
    "rating": "rating",
    "is_read": "is_read",
}
_WINDOW = {"history": pl.List(pl.String), "target": pl.String, "group": pl.String}


def goodreads(config: PrepareConfig) -> Source:
    """Read a genre of the UCSD Book Graph: `goodreads_interactions_*.json.gz` and `goodreads_books_*.json.gz`.

    The time of an interaction is `date_added`. A rating of 0 means no rating. Unread books on a user's shelf count as
    touched, so they are never negatives of that user. Editions of one work share a title and are merged by default.
    """
    both = config.interactions is not None and config.items is not None
    if config.path is None and not both:
        raise ConfigError("path: source goodreads needs a folder, or interactions and items")
    if bool(config.interactions) != bool(config.items):
        raise ConfigError("interactions, items: name both, or neither beside path")
    shelf_path = config.interactions or _find(config.required("path"), "interactions")
    books_path = config.items or _find(config.required("path"), "books")
    shelf = _shelf(shelf_path)
    items = titled(_books(books_path).join(shelf, on="item_id", how="semi", maintain_order="left"), books_path)
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
    differ only in case, spacing or HTML entities are one book. Ids are numbered in a meaningless order, because the
    order of appearance would reveal the next book. Windows with the target in the history, or with fewer than
    `min_history` titles, are dropped.
    """
    folder, min_history = config.required("path"), config.min_history
    rows = list(_window_rows(folder))
    lengths = [len(history) for history, *_ in rows]
    refuse_short(lengths, folder, min_history)
    spellings = dict.fromkeys(title for history, target, _ in rows for title in (*history, target))
    books: dict[str, str] = {}
    for title in spellings:
        books.setdefault(normal_title(title), title)
    # Sorted by a hash of the title, so that ids follow neither the order of appearance nor the alphabet.
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=16).digest() for name in books}
    ids = {name: str(n) for n, name in enumerate(sorted(books, key=hashes.__getitem__))}
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for *titles, group in ((*history, target, group) for history, target, group in rows):
        *history, target = (ids[normal_title(title)] for title in titles)
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
    shelf = read_json_rows(path, dict.fromkeys(_FIELDS.values(), pl.String))
    shelf = parse_numbers(pick_columns(shelf, _FIELDS, path), "rating", path, empty_remedy="correct or drop the line")
    times = shelf["timestamp"].str.to_datetime(_DATE, time_unit="us", time_zone="UTC", strict=False).dt.epoch("s")
    example = "like 'Wed Jan 10 10:24:35 -0800 2018'"
    refuse_bad(shelf["timestamp"], times.is_null(), path, "date_added", example)
    is_read = (pl.col("is_read") == "true").fill_null(False)
    return shelf.with_columns(times, is_read, pl.col("rating").replace(0.0, None))


def _books(path: Path) -> pl.DataFrame:
    """Return id and title of the books."""
    books = read_json_rows(path, {"book_id": pl.String, "title": pl.String})
    return pick_columns(books, {"item_id": "book_id", "title": "title"}, path)


def _window_rows(folder: Path) -> Iterator[tuple[list[str], str, str]]:
    """Yield history, target and group of each window."""
    for path in (folder / "windows_train.jsonl", folder / "windows_valid_recovered.jsonl"):
        for line, (history, target, group) in enumerate(read_json_rows(path, _WINDOW).iter_rows(), start=1):
            # Decoded here, because two spellings of one title would otherwise become two books.
            titles = [without_entities(title or "") for title in (*(history or [None]), target)]
            if group is None or any(is_blank(title) for title in titles):
                raise DataError(f"{path}, line {line}: expected history (titles), target (title) and group")
            yield titles[:-1], titles[-1], group


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


GOODREADS = SourceKind(goodreads, takes=("interactions", "items", "duplicate_titles", "missing_titles", "read_only"))
WINDOWS = SourceKind(goodreads_windows, given=True)
