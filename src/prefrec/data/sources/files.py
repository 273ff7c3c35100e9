"""The user's own log and catalogue: CSV, TSV, Parquet or RecBole atomic files with mapped column names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from prefrec.data.readers import (
    FILE_ORDER,
    check_ids,
    parse_numbers,
    parse_timestamps,
    pick_columns,
    read_table,
    with_file_order,
)
from prefrec.data.sources.base import Source, check_log, clean_catalogue, merge_duplicates, user_attributes
from prefrec.data.sources.shown import fold_skips, known_impressions, parse_impressions, parse_skipped
from prefrec.data.titles import DuplicateTitles
from prefrec.data.types import Catalogue

_OPTIONS = {
    "user_id": "--user-column (`columns.user` in a recipe)",
    "item_id": "--item-column (`columns.item` in a recipe)",
    "timestamp": "--timestamp-column (`columns.timestamp` in a recipe); if there are no times but the lines are in "
    f"temporal order, name the column {FILE_ORDER}",
    "rating": "--rating-column (`columns.rating` in a recipe)",
    "impressions": "--impressions-column (`columns.impressions` in a recipe)",
    "skipped": "--skipped-column (`columns.skipped` in a recipe)",
}
_CATALOGUE_OPTIONS = {
    "item_id": "--catalogue-item-column (`columns.catalogue_item` in a recipe)",
    "title": "--title-column (`columns.title` in a recipe)",
}
_NO_RATING = (
    "correct or empty these fields, or leave the column out with --rating-column none (`columns.rating: null` in a "
    "recipe)"
)


def files(
    interactions: Path,
    items: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    rating: str | None = "rating",
    impressions: str | None = None,
    skipped: str | None = None,
    catalogue_item: str | None = None,
    title: str = "title",
    encoding: str = "utf-8",
    duplicate_titles: DuplicateTitles = "error",
    missing_titles: Literal["error", "drop"] = "error",
    users: Path | None = None,
) -> Source:
    """Read a log and a catalogue from files. The other arguments name their columns.

    The rating column may be absent if it has its default name; None reads no ratings, and an empty rating is null.
    All columns of `users` other than the user's id (named as in the log, or `user_id`) are attributes. An interaction
    marked in `skipped` is removed from the log, and its item joins the `impressions` of the user's next interaction.
    `FILE_ORDER` as `timestamp` takes the order of the lines.

    Raises:
        DataError: a file, column or value cannot be used.
    """
    log_path, items_path = Path(interactions), Path(items)
    wanted = {"user_id": user, "item_id": item, "timestamp": timestamp}
    more = {"rating": rating, "impressions": impressions, "skipped": skipped}
    wanted |= {ours: theirs for ours, theirs in more.items() if theirs}
    optional = ("rating",) if rating == "rating" else ()
    table = with_file_order(read_table(log_path, encoding), timestamp)
    log = pick_columns(table, wanted, log_path, optional, _OPTIONS)
    for column in ("user_id", "item_id"):
        log = check_ids(log, column, log_path, wanted[column])
    log, notes = parse_timestamps(log, "timestamp", log_path, timestamp)
    log, rating_notes = _opinions(log, log_path, rating, impressions, skipped)
    notes += rating_notes
    columns = {"item_id": catalogue_item or item, "title": title}
    catalogue = pick_columns(read_table(items_path, encoding), columns, items_path, options=_CATALOGUE_OPTIONS)
    catalogue = clean_catalogue(check_ids(catalogue, "item_id", items_path, columns["item_id"]), items_path, title)
    log, dropped = check_log(log, catalogue, log_path, missing_titles)
    log, catalogue, merged = merge_duplicates(log, catalogue, duplicate_titles)
    if "impressions" in log.columns:
        log, untitled = known_impressions(log, catalogue)
        merged = [*merged, *untitled]
    people = None if users is None else _people(users, user, encoding)
    return Source("files", "generic", Catalogue(catalogue), log, notes + dropped + merged, users=people)


def _opinions(
    log: pl.DataFrame, path: Path, rating: str | None, impressions: str | None, skipped: str | None
) -> tuple[pl.DataFrame, list[str]]:
    """Return the log with its ratings, impressions and skips parsed, and notes."""
    notes = []
    if "rating" in log.columns:
        log = parse_numbers(log, "rating", path, rating, may_be_empty=True, remedy=_NO_RATING)
        empty = log["rating"].null_count()
        notes = [f"{empty} of {len(log)} interactions have no rating"] if empty else []
    if impressions:
        log = parse_impressions(log, path, impressions)
    if skipped:
        log = fold_skips(parse_skipped(log, path, skipped))
    return log, notes


def _people(path: Path, user: str, encoding: str) -> pl.DataFrame:
    people = read_table(path, encoding)
    own = user if user in people.columns or "user_id" not in people.columns else "user_id"
    others = {c: c for c in people.columns if c not in (own, "user_id")}
    return user_attributes(pick_columns(people, {"user_id": own} | others, path), path, own)
