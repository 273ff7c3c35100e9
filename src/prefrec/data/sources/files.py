"""Anybody's log and catalogue: CSV, TSV, Parquet or RecBole atomic files, with mapped column names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefrec.data.readers import check_ids, parse_numbers, parse_timestamps, pick_columns, read_table
from prefrec.data.sources.base import Source, check_log, clean_catalogue, merge_duplicates, user_attributes
from prefrec.data.titles import DuplicateTitles
from prefrec.data.types import Catalogue

_OPTIONS = {
    "user_id": "--user-column",
    "item_id": "--item-column",
    "timestamp": "--timestamp-column",
    "rating": "--rating-column",
}


def files(
    interactions: Path,
    items: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    rating: str = "rating",
    catalogue_item: str | None = None,
    title: str = "title",
    encoding: str = "utf-8",
    duplicate_titles: DuplicateTitles = "error",
    missing_titles: Literal["error", "drop"] = "error",
    users: Path | None = None,
) -> Source:
    """A log and a catalogue from files; the other arguments say what their columns are called.

    The rating column is read where it is there; a name other than `rating` must be there. All columns of `users` but
    the user's id, which is called as in the log or `user_id`, are attributes.

    Raises:
        DataError: a file, column or value cannot be used; the message names it and the way out.
    """
    log_path, items_path = Path(interactions), Path(items)
    wanted = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    optional = ("rating",) if rating == "rating" else ()
    log = pick_columns(read_table(log_path, encoding), wanted, log_path, optional, _OPTIONS)
    for column in ("user_id", "item_id"):
        log = check_ids(log, column, log_path)
    log, notes = parse_timestamps(log, "timestamp", log_path)
    if "rating" in log.columns:
        log = parse_numbers(log, "rating", log_path)
    options = {"item_id": "--catalogue-item-column", "title": "--title-column"}
    columns = {"item_id": catalogue_item or item, "title": title}
    catalogue = pick_columns(read_table(items_path, encoding), columns, items_path, options=options)
    catalogue = clean_catalogue(check_ids(catalogue, "item_id", items_path), items_path)
    before = len(log)
    log = check_log(log, catalogue, log_path, missing_titles)
    if len(log) < before:
        notes.append(f"{before - len(log)} interactions with items without a title were left out")
    log, catalogue, merged = merge_duplicates(log, catalogue, duplicate_titles)
    told = None
    if users is not None:
        table = read_table(users, encoding)
        own = user if user in table.columns or "user_id" not in table.columns else "user_id"
        others = {c: c for c in table.columns if c not in (own, "user_id")}
        told = user_attributes(pick_columns(table, {"user_id": own} | others, users), users)
    return Source("files", "generic", Catalogue(catalogue), log, notes + merged, users=told)
