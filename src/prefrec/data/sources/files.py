"""The user's own log and catalogue: CSV, TSV, Parquet or RecBole atomic files with mapped column names."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prefrec.data.config import PrepareConfig
from prefrec.data.readers import FILE_ORDER, parse_numbers, parse_timestamps, pick_columns, read_table
from prefrec.data.sources.base import (
    CATALOGUE_FIELDS,
    Source,
    check_log,
    clean_catalogue,
    merge_duplicates,
    user_attributes,
)
from prefrec.data.sources.shown import fold_skips, known_impressions, parse_impressions, parse_skipped
from prefrec.data.types import Catalogue

_NO_RATING = (
    "correct or empty these fields, or leave the column out with --columns.rating none (`columns.rating: null` in a "
    "recipe)"
)
# Column of the log → field of `ColumnNames`.
_FIELDS = {"user_id": "user", "item_id": "item"} | {c: c for c in ("timestamp", "rating", "impressions", "skipped")}


def files(config: PrepareConfig) -> Source:
    """Read the log `config.interactions` and the catalogue `config.items`, with columns named as `config.columns`.

    The rating column may be absent if it has its default name. An empty rating is null. All columns of `config.users`
    other than the user's id (named as in the log, or `user_id`) are attributes. An interaction marked in `skipped` is
    removed from the log, and its item joins the `impressions` of the user's next interaction.

    Raise DataError if a file, column or value cannot be used.
    """
    columns, log_path, items_path = config.columns, config.required("interactions"), config.required("items")
    names = {ours: getattr(columns, field) for ours, field in _FIELDS.items()}
    table = read_table(log_path, config.encoding)
    if columns.timestamp == FILE_ORDER:
        table = table.with_columns(pl.int_range(pl.len()).alias(FILE_ORDER))
    optional = ("rating",) if columns.rating == "rating" else ()
    log = pick_columns(table, {o: t for o, t in names.items() if t}, log_path, optional, _FIELDS)
    log, notes = parse_timestamps(log, "timestamp", log_path, columns.timestamp)
    if "rating" in log.columns:
        log = parse_numbers(log, "rating", log_path, columns.rating, may_be_empty=True, remedy=_NO_RATING)
        empty = log["rating"].null_count()
        notes += [f"{empty} of {len(log)} interactions have no rating"] if empty else []
    if columns.impressions:
        log = parse_impressions(log, log_path, columns.impressions)
    if columns.skipped:
        log = fold_skips(parse_skipped(log, log_path, columns.skipped))
    names = {"item_id": columns.catalogue_item or columns.item, "title": columns.title}
    catalogue = pick_columns(read_table(items_path, config.encoding), names, items_path, options=CATALOGUE_FIELDS)
    catalogue = clean_catalogue(catalogue, items_path, columns.title)
    log, dropped = check_log(log, catalogue["item_id"], log_path, config.missing_titles)
    log, catalogue, merged = merge_duplicates(log, catalogue, config.duplicate_titles or "error")
    if "impressions" in log.columns:
        log, untitled = known_impressions(log, catalogue)
        merged = [*merged, *untitled]
    users = None if config.users is None else _users(config.users, columns.user, config.encoding)
    return Source("files", "generic", Catalogue(catalogue), log, notes + dropped + merged, users=users)


def _users(path: Path, user: str, encoding: str) -> pl.DataFrame:
    users = read_table(path, encoding)
    own = user if user in users.columns or "user_id" not in users.columns else "user_id"
    others = {c: c for c in users.columns if c not in (own, "user_id")}
    return user_attributes(pick_columns(users, {"user_id": own} | others, path), path, own)
