"""Guess the role of each column of a log and a catalogue, by names and contents."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path

import polars as pl
import polars.selectors as cs

from prefrec.errors import DataError
from prefrec.intake.config import ColumnNames
from prefrec.intake.readers import FILE_ORDER, with_points
from prefrec.intake.times import date_forms, parse_timestamps
from prefrec.proposal.kinds import why_kinds
from prefrec.proposal.setting import Setting
from prefrec.proposal.words import name_fit

_OF_ITEMS = ("catalogue_item", "title")
_PLAUSIBLE = (631_152_000, 2_208_988_800)
"""1990 and 2040 in seconds since 1970."""
_NUMBER = r"^[+-]?\d+(\.\d+)?$"
_LOOKED_AT = 1000
_MOST_KINDS = 12


def guess_columns(texts: list[pl.DataFrame], paths: tuple[Path, Path], given: ColumnNames) -> dict[str, Setting]:
    """Return field → column, for a log and a catalogue with columns of text."""
    columns = {f: Setting(f, c, "as named") for f, c in given.model_dump(include=given.model_fields_set).items()}

    def free(field: str) -> pl.DataFrame:
        at = field in _OF_ITEMS
        used = {s.value for f, s in columns.items() if (f in _OF_ITEMS) == at and f != field}
        return texts[at].select(c for c in texts[at].columns if c not in used)

    if not {"item", "catalogue_item"} <= columns.keys():
        columns = _ids(free("item"), free("catalogue_item"), paths, given) | columns
    for field in ("timestamp", "rating", "user", "title"):
        columns[field] = columns.get(field) or _best(field, free(field), paths[field in _OF_ITEMS])
    columns = _returns(free("quantity")) | columns
    timestamp = columns["timestamp"].value
    if given.timestamp_format is None and timestamp in texts[0].columns:
        columns |= _form(texts[0][timestamp])
    return {field: columns[field] for field in ColumnNames.model_fields if field in columns}


def _returns(log: pl.DataFrame) -> dict[str, Setting]:
    """Return the column of quantities, if some are negative, and that of kinds of lines, if they have known names."""
    found = {}
    for column in log.columns:
        values = log[column].drop_nulls()
        if "quantity" not in found and name_fit("quantity", column):
            numbers = with_points(values).cast(pl.Float64, strict=False)
            if not numbers.has_nulls() and (negative := int((numbers < 0).sum())):
                found["quantity"] = Setting("quantity", column, f"sure: {negative:,} negative ones are returns")
        few = 1 < values.n_unique() <= _MOST_KINDS
        if few and "kind" not in found and name_fit("kind", column) and (why := why_kinds(values.unique().sort())):
            found["kind"] = Setting("kind", column, why)
    return found


def _form(times: pl.Series) -> dict[str, Setting]:
    """Return the format of times that are texts in one of `FORMS`; nothing for other times."""
    if times.str.contains(_NUMBER).any() or not (forms := date_forms(times)):
        return {}
    why = f"such as {times.drop_nulls()[0]}"
    if len(forms) > 1:
        why = f"check: {' and '.join(forms)} both fit {times.drop_nulls()[0]}"
    return {"timestamp_format": Setting("timestamp_format", forms[0], why)}


def _ids(log: pl.DataFrame, items: pl.DataFrame, paths: tuple[Path, Path], given: ColumnNames) -> dict[str, Setting]:
    """Return the two columns that hold item ids: exact names decide, else names and common values."""
    named = _named_alike(log, items, given)
    best, repeated = (0.0, 0.0, "", ""), ""
    for column, other in named or product(_possible_items(log, given), items.columns):
        used = {*log[column].drop_nulls().unique()}
        ids = {*items[other].drop_nulls()}
        overlap, coverage = (len(used & ids) / max(len(either), 1) for either in (used, ids))
        # Whole numbers may be ids of anything. Item ids cover more of the catalogue.
        score = overlap + coverage / 4 + name_fit("item", column) / 2 + name_fit("id", other) / 4
        score -= (name_fit("user", column) + name_fit("title", column) + name_fit("title", other)) / 2
        score += 9 * ((column == given.item) + (other == given.catalogue_item))
        if named or (overlap >= 0.5 and _is_unique(items[other])):
            best = max(best, (score, overlap, column, other))
        elif overlap >= 0.5 and name_fit("item", column) and (column == other or name_fit("id", other)):
            repeated = other
    _, overlap, column, other = best
    if not column and repeated:
        values = items[repeated].drop_nulls()
        more, example = len(values) - values.n_unique(), values.filter(values.is_duplicated())[0]
        raise DataError(
            f"{paths[1]}: column {repeated!r} has ids of the log, but {more:,} of its {len(values):,} lines repeat "
            f"one, such as {example!r}; keep one line per item, or name the columns of ids with --columns.item and "
            "--columns.catalogue-item"
        )
    if not column:
        raise DataError(
            f"{paths[0]}: no column of {log.columns} has the same ids as a column of {items.columns} in {paths[1]}. "
            "Name both with --columns.item and --columns.catalogue-item"
        )
    sure = "sure" if name_fit("item", column) and overlap > 0.9 else "check"
    item = Setting("item", column, f"{sure}: {overlap:.0%} of its values are in {paths[1].name}")
    return {"item": item, "catalogue_item": Setting("catalogue_item", other, "the same ids")}


def _named_alike(log: pl.DataFrame, items: pl.DataFrame, given: ColumnNames) -> list[tuple[str, str]]:
    """Return the pairs of columns of item ids that have one name, such as `item_id`, in both files.

    Their values need not be equal: if `7` is written `007` in one file, or another file was given by mistake, reading
    the files ends with an error that says so. Without this rule, numbers of users would pass for those of items.
    """
    if {"item", "catalogue_item"} & given.model_fields_set:
        return []
    shared = [column for column in _possible_items(log, given) if column in items.columns]
    return [
        (column, column)
        for column in shared
        if name_fit("item", column) and not name_fit("title", column) and _is_unique(items[column])
    ]


def _possible_items(log: pl.DataFrame, given: ColumnNames) -> list[str]:
    """Return the columns of a log but those named like users, times or ratings, if another is named like items."""
    named = [c for c in log.columns if any(name_fit(role, c) for role in ("user", "timestamp", "rating"))]
    others = [column for column in log.columns if column not in named or column == given.item]
    return others if any(name_fit("item", column) for column in others) else log.columns


def _is_unique(ids: pl.Series) -> bool:
    """Return whether at most one in 20 values repeats another one."""
    values = ids.drop_nulls()
    return values.n_unique() >= 0.95 * len(values)


def _best(field: str, frame: pl.DataFrame, path: Path) -> Setting:
    """Return the column that fits best, the first of equal ones; raise DataError if a required field has none."""
    fits = [(*fit, column) for column in frame.columns if (fit := _fit(field, column, frame[column].drop_nulls()))]
    if fits:
        _, why, column = max(fits, key=lambda fit: fit[0])
        return Setting(field, column, why)
    if field == "rating":
        return Setting(field, None, "no column looks like ratings")
    if field == "timestamp" and not any(name_fit(field, column) for column in frame.columns):
        return Setting(field, FILE_ORDER, "check: no column has times; are the lines in temporal order?")
    lone = _lone_users(frame) if field == "user" else ""
    seen = lone or f"none of the other columns {frame.columns} looks like a {field}"
    more = ", or set the format of its times with --columns.timestamp-format" if field == "timestamp" else ""
    raise DataError(f"{path}: {seen}. Name {'another column' if lone else 'it'} with --columns.{field}{more}")


def _lone_users(frame: pl.DataFrame) -> str:
    """Explain why a column whose name suggests users does not hold them; "" if no column has such a name."""
    for column in frame.columns:
        values = frame[column].drop_nulls()
        if name_fit("user", column) and len(values) and values.n_unique() in (1, len(values)):
            if values.n_unique() == 1:
                return f"column {column} has only one user, {values[0]!r}; expected the log of several users"
            return f"column {column} has another user on each line; expected users with several interactions"
    return ""


def _fit(field: str, column: str, values: pl.Series) -> tuple[float, str] | None:
    """Return a score and the reason for it; None if the column cannot be this field."""
    named, count, different = name_fit(field, column), len(values), values.n_unique()
    if not count:
        return None
    sure = "sure" if named else "check"
    if field == "timestamp":
        if dates := _dates(column, values):
            return 2 + named + dates, f"{sure}: dates"
        if named and values.head(_LOOKED_AT).str.contains(_NUMBER).all():
            return named, "check: numbers, not dates"
    elif field == "rating" and named and not with_points(values).cast(pl.Float64, strict=False).has_nulls():
        return named, f"{sure}: numbers"
    elif field == "user" and 1 < different < count:
        # A number may be a user's id even if it could also be a time.
        if holds_dates(column, values):
            return None
        score = 2 * named + name_fit("id", column) / 10 + different / count
        return score, f"{sure}: {different:,} users, {count / different:.1f} lines each"
    elif field == "title" and different > count / 2:
        is_text = values.str.contains(r"\p{L}") & ~values.str.contains("://")
        if is_text.sum() > 0.9 * count:
            return 2 * named + different / count, f"{sure}: text, such as {values[0]!r:.60}"
    return None


def holds_dates(column: str, values: pl.Series) -> bool:
    """Return True if these texts [n] are dates. Numbers count as dates only in a column that is named like times."""
    is_number = values.head(_LOOKED_AT).str.contains(_NUMBER).all()
    return _dates(column, values) > 0 and (name_fit("timestamp", column) > 0 or not is_number)


def _dates(column: str, values: pl.Series) -> float:
    """Return a number above 0 if the values are dates, higher if their format is certain; else 0."""
    sample = values.head(_LOOKED_AT)
    if not len(sample):
        return 0.0
    if not sample.str.contains(_NUMBER).any() and date_forms(sample):
        return 0.01
    with suppress(DataError):
        times = parse_timestamps(sample.to_frame(), column, Path())[0][column]
        return 0.02 * bool(times.is_between(*_PLAUSIBLE).all())
    return 0.0


def as_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns as text, with null for empty fields.

    Columns that have no text form (lists, records, bytes, durations) are dropped.
    """
    texts = frame.select(~(cs.nested() | cs.binary() | cs.duration())).cast(pl.String)
    texts = texts.select(pl.all().str.strip_chars().str.strip_suffix(".0"))  # pandas writes ids as 12.0
    return texts.select(pl.when(pl.all() != "").then(pl.all()))
