"""The user's log and catalogue: CSV, TSV, Parquet or RecBole atomic files with any column names."""

from __future__ import annotations

from collections.abc import Callable
from glob import escape, glob, has_magic
from pathlib import Path

import polars as pl
import polars.selectors as cs

from prefrec.data.times import SUBSECOND
from prefrec.data.types import Catalogue
from prefrec.errors import DataError
from prefrec.intake import readers
from prefrec.intake.config import ColumnNames, PrepareConfig
from prefrec.intake.kinds import count_by_kind, parse_kinds
from prefrec.intake.readers import FILE_NAME, FILE_ORDER
from prefrec.intake.returns import settle
from prefrec.intake.sources.base import (
    Source,
    SourceKind,
    check_log,
    merge_duplicates,
    noted_catalogue,
    parse_lists,
    pick_catalogue,
    user_attributes,
)
from prefrec.intake.times import Part, Times, join_parts, parse_timestamps

_NO_RATING = (
    "correct or empty these fields, or ignore the column with --columns.rating none (`columns.rating: null` in a "
    "recipe)"
)
# Column of the log → field of `ColumnNames`.
_FIELDS = {"user_id": "user", "item_id": "item"} | {
    column: column for column in ("timestamp", "rating", "quantity", "kind", "impressions", "skipped")
}
# Values of the column `skipped`.
_YES, _NO = ("true", "1", "yes", "t"), ("false", "0", "no", "f", "")
# Texts that float conversion takes for numbers but that name something: 0101 would become 101, 1E3 would become 1000,
# and numbers of more than 15 digits are not exact. Programs write numbers as 1e-05 or 1.0E7.
_CODE = r"^[+-]?(0\d|\d+[eE]\d|\d{16,}$)"


def files(config: PrepareConfig, read_table: Callable[..., pl.DataFrame] = readers.read_table) -> Source:
    """Read a log and a catalogue with mapped column names.

    The rating column may be absent if it has its default name. An empty rating is null. An interaction marked in
    `skipped` is removed from the log, and its item is added to the `impressions` of the user's next interaction.
    Returns are settled (`settle`). Further columns of the catalogue are kept, for the rules of recommendations.

    Args:
        config: `interactions`, `items` and perhaps `users` are the files. All columns of `users` except the user id
            (named as in the log, or `user_id`) are attributes.
        read_table: reads the log and the catalogue.
    """
    columns, log_path = config.columns, config.required("interactions")
    log, notes = _log(config, read_table)
    catalogue, more = _catalogue(config, read_table)
    notes += more
    log, dropped = check_log(log, catalogue["item_id"], log_path, config.missing_titles)
    log, catalogue, merged = merge_duplicates(log, catalogue, config.duplicate_titles or "error")
    besides, returns = None, list[str]()
    if columns.quantity or columns.kind:
        log, besides, returns = settle(log)
        if log.is_empty():
            raise DataError(
                f"{log_path}: no purchase is left without returns and lines that are none; check the columns of "
                "quantity and kind, and `kinds` in the recipe"
            )
    if "impressions" in log.columns:
        log, untitled = _known_impressions(log, catalogue)
        merged = [*merged, *untitled]
    users = None if config.users is None else _users(config.users, columns.user, config.encoding)
    notes += dropped + merged + returns + count_by_kind(log)
    return Source("files", "generic", Catalogue(catalogue), log, notes, besides=besides, users=users)


def _log(config: PrepareConfig, read_table: Callable[..., pl.DataFrame]) -> tuple[pl.DataFrame, list[str]]:
    """Return the log of all files with our names of columns, and notes."""
    columns = config.columns
    log_path = config.required("interactions")
    items_path = config.required("items")
    names = {ours: getattr(columns, field) for ours, field in _FIELDS.items()}
    wanted = {ours: theirs for ours, theirs in names.items() if theirs}
    optional = ("rating",) if columns.rating == "rating" else ()
    # Ids as text take most of the memory of a log. Lists of ids need text.
    ids = pl.String() if columns.impressions or columns.skipped else readers.IDS
    parts: list[Part] = []
    lines = 0

    def shrink(table: pl.LazyFrame) -> pl.LazyFrame:
        present = table.collect_schema().names()
        missing = {*wanted.values()} - {FILE_ORDER, FILE_NAME, *present, *optional}
        if not missing:  # otherwise keep all columns, for the error message
            table = table.select(c for c in present if c in wanted.values())
        texts = cs.by_name(columns.user, columns.item, require_all=False) & (cs.string() | cs.integer())
        return table.with_columns(texts.cast(pl.String).cast(ids))

    for path in (file for log in (log_path, *config.more_interactions) for file in files_of(log, items_path)):
        table = read_table(path, config.encoding, shrink=shrink)
        if columns.timestamp == FILE_ORDER:
            table = table.with_columns((pl.int_range(pl.len()) + lines).alias(FILE_ORDER))
        if columns.kind == FILE_NAME:
            table = table.with_columns(pl.lit(readers.file_name(path).partition(".")[0]).alias(FILE_NAME))
        lines += len(table)
        log = readers.pick_columns(table, wanted, path, optional, _FIELDS, config.missing_users)
        form = ""
        if columns.timestamp != FILE_ORDER:  # numbers of lines could be taken for days of a spreadsheet
            log, form = parse_timestamps(
                log, "timestamp", path, columns.timestamp, columns.timestamp_format, config.missing_times
            )
        log = _parsed(log, path, config).with_columns(pl.col("user_id", "item_id").cast(ids))
        parts.append((path, Times(log, form)))
    log, notes = join_parts(parts, "timestamp", log_path, columns.timestamp)
    log, dropped = _without_missing(log, log_path, columns)
    notes += dropped
    if "rating" in log.columns and (empty := log["rating"].null_count()):
        notes.append(f"{empty} of {len(log)} interactions have no rating")
    if columns.skipped:
        log = fold_skips(log)
        if log.is_empty():
            raise DataError(
                f"{log_path}, column {columns.skipped}: all lines are marked as skips, so no interaction is left. "
                "Name the column that marks only skips with --columns.skipped (`columns.skipped` in a recipe), or "
                "leave this setting out"
            )
    return log, notes


def _parsed(log: pl.DataFrame, path: Path, config: PrepareConfig) -> pl.DataFrame:
    """Return a part of the log with parsed values of its columns but ids and times."""
    columns = config.columns
    if "rating" in log.columns:
        log = readers.parse_numbers(log, "rating", path, columns.rating, _NO_RATING)
    if columns.quantity:
        log = readers.parse_numbers(log, "quantity", path, columns.quantity, readers.REMEDY)
    if columns.kind:
        log = parse_kinds(log, path, columns.kind, config.kinds, config.targets)
    if columns.impressions:
        log = log.with_columns(parse_lists(log["impressions"], path, columns.impressions))
    return parse_skipped(log, path, columns.skipped) if columns.skipped else log


def _without_missing(log: pl.DataFrame, path: Path, columns: ColumnNames) -> tuple[pl.DataFrame, list[str]]:
    """Return the log without the interactions that have no user or no time, and notes; DataError if none is left."""
    notes = []
    for ours, called, what, more in (
        ("user_id", columns.user, "user", ""),
        ("timestamp", columns.timestamp, "time", f", or {FILE_ORDER} if the lines are in temporal order,"),
    ):
        if missing := log[ours].null_count():
            if missing == len(log):
                field = _FIELDS[ours]
                raise DataError(
                    f"{path}, column {called}: no interaction has a {what}. Name the right column{more} with "
                    f"--columns.{field} (`columns.{field}` in a recipe)"
                )
            notes.append(f"{missing} of {len(log)} interactions had no {what} and were dropped")
            log = log.drop_nulls(ours)
    return log, notes


def _catalogue(config: PrepareConfig, read_table: Callable[..., pl.DataFrame]) -> tuple[pl.DataFrame, list[str]]:
    """Return the catalogue with our names of columns, and notes."""
    columns, path = config.columns, config.required("items")
    table = read_table(path, config.encoding)
    catalogue = pick_catalogue(table, path, columns.catalogue_item or columns.item, columns.title)
    codes = list[str]()
    # Parquet has types, also that of a frame given to `fit`: its texts are meant as texts.
    has_types = readers.is_parquet(path) or readers.ADDRESS.search(path.as_posix())
    if not has_types:
        catalogue, codes = _with_numbers(catalogue, path)
    catalogue, repeated = noted_catalogue(catalogue, path, columns.title)
    return catalogue, codes + repeated


def files_of(path: Path, catalogue: Path) -> list[Path]:
    """Return the files of a folder or a pattern but the catalogue, sorted by name, or the file or address itself."""
    pattern = f"{escape(str(path))}/*" if path.is_dir() else str(path)
    if readers.ADDRESS.search(path.as_posix()) or path.is_file() or not has_magic(pattern):
        return [path]
    found, left_out = map(Path, glob(pattern, recursive=True)), catalogue.resolve()
    visible = [p for p in found if p.is_file() and not p.name.startswith("_")]
    paths = sorted(p for p in visible if p.resolve() != left_out)
    if not paths:
        what = "the folder has no files" if path.is_dir() else "no file matches"
        raise DataError(f"{path}: {what}; expected parts of a log, such as part-0.parquet")
    return paths


def _with_numbers(items: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, list[str]]:
    """Convert further columns of the catalogue that contain only numbers, because text files are untyped.

    Columns with a `_CODE`, or with one number in two forms such as the versions 1.10 and 1.1, remain texts.

    Returns:
        The catalogue, and a note about each column with a number in two forms.
    """
    texts = [c for c in items.columns if c not in ("item_id", "title") and items.schema[c] == pl.String]
    texts = [c for c in texts if not items[c].str.contains(_CODE).any()]
    numbers = items.select(readers.with_points(items[c]).cast(pl.Float64, strict=False) for c in texts)
    converted, notes = [], []
    for column in numbers:
        empty = items[column.name].null_count()
        if not column.null_count() == empty < len(items):
            continue
        if twice := _two_forms(items[column.name]):
            notes.append(
                f"{readers.file_name(path)}, column {column.name}: read as texts, because {' and '.join(twice)} are "
                "one number; if they are numbers and not codes, write them in one form"
            )
        else:
            converted.append(column)
    return items.with_columns(converted), notes


def _two_forms(texts: pl.Series) -> list[str]:
    """Return two texts that differ only in zeros at the end of a decimal fraction, such as 1.10 and 1.1; else []."""
    fractions = texts.filter(texts.str.contains(r"[.,]\d").fill_null(False)).unique(maintain_order=True)
    same = fractions.str.replace(r"([.,]\d+?)0+$", "$1")
    twice = same.is_duplicated()
    if not twice.any():
        return []
    return fractions.filter(same == same.filter(twice)[0])[:2].to_list()


def parse_skipped(log: pl.DataFrame, path: Path, called: str) -> pl.DataFrame:
    """Convert the column `skipped` (`called` in the file) to true or false; an empty field is false."""
    words = readers.as_text(log, "skipped", path, called).fill_null("").str.strip_chars().str.to_lowercase()
    words = words.str.strip_suffix(".0")  # pandas writes 1 as 1.0
    bad = ~words.is_in([*_YES, *_NO])
    readers.refuse_bad(log["skipped"], bad, path, called, "true or false", "write one of them")
    return log.with_columns(words.is_in(_YES).alias("skipped"))


def fold_skips(log: pl.DataFrame) -> pl.DataFrame:
    """Remove skips from the log, and add each skipped item to the impressions of the user's next interaction.

    The skip's own impressions were shown at the same time, so they are added too. If no interaction follows, they are
    added to the last one. Skips of users without interactions are dropped.
    """
    fine = pl.col(SUBSECOND) if SUBSECOND in log.columns else pl.lit(0)
    log = log.with_columns(moment=pl.col("timestamp") * 10**6 + fine).sort("moment", maintain_order=True)
    kept = log.filter(~pl.col("skipped")).drop("skipped").with_row_index("row")
    shown = [pl.col("impressions")] if "impressions" in log.columns else []
    skipped = pl.concat_list(*shown, pl.col("item_id"))
    skips = log.filter(pl.col("skipped")).select("user_id", "moment", skip=skipped)
    rows = kept.select("user_id", "moment", "row")
    # Both sides are sorted by time, as `join_asof` requires; its own check ignores groups.
    ahead = skips.join_asof(rows, on="moment", by="user_id", strategy="forward", check_sortedness=False)
    behind = ahead.filter(pl.col("row").is_null()).drop("row")
    behind = behind.join_asof(rows, on="moment", by="user_id", strategy="backward", check_sortedness=False)
    of_row = (
        pl.concat([ahead, behind])
        .drop_nulls("row")
        .group_by("row", maintain_order=True)
        .agg(pl.col("skip").explode())
    )
    joined = kept.join(of_row, on="row", how="left", maintain_order="left")
    impressions = pl.concat_list(*shown, pl.col("skip").fill_null([])).alias("impressions")
    return joined.with_columns(impressions).drop("row", "moment", "skip")


def _known_impressions(log: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Keep only impressions of items with a title, each once and without the clicked item; return log and note."""
    log = log.with_row_index("row")
    pairs = log.select("row", "item_id", "impressions").explode("impressions").drop_nulls()
    pairs = pairs.filter(pl.col("impressions") != pl.col("item_id")).unique(maintain_order=True)
    known = pairs.filter(pl.col("impressions").is_in(items["item_id"].to_list()))
    dropped = len(pairs) - len(known)
    notes = [f"{dropped} impressions of items without a title were dropped"] if dropped else []
    lists = known.group_by("row").agg("impressions")
    joined = log.drop("impressions").join(lists, on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.col("impressions").fill_null([])).drop("row"), notes


def _users(path: Path, user: str, encoding: str) -> pl.DataFrame:
    users = readers.read_table(path, encoding)
    id_column = user if user in users.columns or "user_id" not in users.columns else "user_id"
    others = {c: c for c in users.columns if c not in (id_column, "user_id")}
    return user_attributes(readers.pick_columns(users, {"user_id": id_column} | others, path), path, id_column)


_TAKES = (
    "interactions", "more_interactions", "items", "users", "columns", "encoding", "duplicate_titles",
    "missing_titles", "missing_times", "missing_users", "kinds", "targets",
)  # fmt: skip
FILES = SourceKind(files, _TAKES)
