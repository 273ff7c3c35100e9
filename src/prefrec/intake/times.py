"""Parse the times of a log: detect units and formats, and reject invalid or ambiguous ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs

from prefrec.data.times import SUBSECOND
from prefrec.errors import DataError
from prefrec.intake.readers import REMEDY, cast_column, file_name, first_line, first_of, refuse_bad, stripped

# Format of dates written as integers → value of one year in it.
_WRITTEN = {"YYYYMMDD": 10**4, "YYYYMMDDhhmm": 10**8, "YYYYMMDDhhmmss": 10**10}
_DAYS = (
    "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y/%m/%d", "%d %b %Y", "%b %d, %Y", "%m %d, %Y",
)  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S", ", %H:%M", ", %H:%M:%S", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_LOGGED = ("%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z")
FORMS = (*(day + clock for day in _DAYS for clock in _CLOCKS), *_LOGGED)
"""strptime formats of dates that are tried. The last ones are those of web servers, tweets and e-mails."""
_OTHER_FORMAT = "correct them, or change --columns.timestamp-format (`columns.timestamp_format` in a recipe)"
_NAME_IT = "set their format with --columns.timestamp-format (`columns.timestamp_format` in a recipe)"
_DROP = "drop the rows without a time with --missing-times drop (`missing_times: drop` in a recipe)"
_EMPTY = ("", "nan", "nat")
"""Texts that stand for no time; the last two are those of pandas."""
# Number of texts on which each format is tried first.
_LOOKED_AT = 200
# 1970, and 1990 to 2060, in days since the end of 1899. Smaller numbers may be counters.
_EXCEL_1970, _EXCEL_DAYS = 25_569, (32_874, 58_440)
# Names of the forms of times that are the usual ones, or that are the same scale.
_SECONDS, _DATED, _ISO_TEXT = "seconds", "dates", "ISO 8601 text"
_SPREADSHEET = "days of a spreadsheet (since 1900)"
# Times below this, in 1973, may be counters.
_COUNTERS = 10**8
# Units of a time since 1970, from coarse to fine: name, units per second.
_UNITS = ((_SECONDS, 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
# Smallest milliseconds, microseconds and nanoseconds. Each is a time in 1973.
_UNIT_BOUNDS = (1e11, 1e14, 1e17)
# Scales of Windows, in steps of 100 nanoseconds → the steps from their origin to 1970. Read as nanoseconds,
# the years of `_WINDOWS_YEARS` would be months of 1974, or of 1989 and 1990.
_WINDOWS = {"a FILETIME (since 1601)": 116_444_736 * 10**9, ".NET ticks (since the year 1)": 621_355_968 * 10**9}
# 1995 to 2060, in steps of 100 nanoseconds since 1970.
_WINDOWS_YEARS = (788_918_400 * 10**7, 2_871_763_200 * 10**7)
# Largest time that fits into 64 bits, in nanoseconds since 1970 (the year 2262). Larger numbers are not times.
_LATEST = 2.0**63
_ISO = r"^\d{4}-\d"


class Times(NamedTuple):
    """A log with times in seconds since 1970, and the form in which they were read.

    The form is "" if the file does not tell it, because it has no times but zero, or if a setting has fixed it.
    """

    frame: pl.DataFrame
    form: str


Part = tuple[Path, Times]
"""A file and the part of a log in it."""


def time_notes(form: str, path: Path) -> list[str]:
    """Return a note on the form in which times were read, if it is not the usual one."""
    return [] if form in ("", _SECONDS, _DATED) else [f"{file_name(path)}: times read as {form}"]


def join_parts(parts: Sequence[Part], column: str, path: Path, called: str) -> tuple[pl.DataFrame, list[str]]:
    """Join the parts of a log; return it with `time_notes`.

    Args:
        parts: files, and the part in each.
        column: that of times.
        path, called: the log, and the name of the column in it, for notes and messages.

    Raises:
        DataError: parts have times in two forms, which might be two scales.
    """
    frames = []
    forms = dict[str, Path]()
    for file, part in _as_counters(parts, column):
        frames.append(part.frame)
        forms.setdefault(part.form, file)
    _check_forms(forms, called)
    notes = [note for form in forms for note in time_notes(form, path)]
    log = pl.concat(frames, how="diagonal")
    return log.with_columns(cs.by_name(SUBSECOND, require_all=False).fill_null(0)), notes


def _as_counters(parts: Sequence[Part], column: str) -> list[Part]:
    """Return the parts of a log with counters that look like days of a spreadsheet as counters.

    All counters of a part may look so. The other parts tell: if they have small numbers beyond these days, then one
    file of all parts would have counters, too.
    """
    others = [part.frame[column] for _, part in parts if part.form == _SECONDS]
    counted = bool(others) and all((times.abs() < _COUNTERS).all() for times in others)
    found = []
    for file, part in parts:
        if counted and part.form == _SPREADSHEET and _are_whole_days(part.frame, column):
            part = Times(part.frame.with_columns(pl.col(column) // 86_400 + _EXCEL_1970), _SECONDS)
        found.append((file, part))
    return found


def _are_whole_days(frame: pl.DataFrame, column: str) -> bool:
    return SUBSECOND not in frame.columns and (frame[column] % 86_400 == 0).all()


def _check_forms(forms: Mapping[str, Path], called: str) -> None:
    """Raise DataError if a log has times in two forms.

    Args:
        forms: form of `Times` → the first part that was read in it.
        called: name of the column of times, for messages.
    """
    # Date types and ISO 8601 texts cannot be mistaken for anything else, so they may stand side by side.
    known = dict[str, tuple[str, Path]]()
    for form, path in forms.items():
        if form:
            known[_DATED if form == _ISO_TEXT else form] = form, path
    if len(known) > 1:
        (form, path), (other, second) = [*known.values()][:2]
        raise DataError(
            f"{second}, column {called}: times read as {other}, but those of {path} as {form}; write all parts in "
            f"one form, or, if all are texts, {_NAME_IT}"
        )


def date_forms(values: pl.Series) -> list[str]:
    """Return the formats of `FORMS` in which all of these texts [n] are dates."""
    values = values.drop_nulls()
    fits = list(FORMS) if len(values) else []
    for sample in (values.head(_LOOKED_AT), values):
        fits = [form for form in fits if _has_usual_years(_moments(sample, form))]
    return fits


def _has_usual_years(moments: pl.Series) -> bool:
    return moments.dt.year().is_between(1900, 2100).fill_null(False).all()


def _moments(values: pl.Series, form: str) -> pl.Series:
    """Parse texts by a strptime format; return times in UTC, null where a text does not fit."""
    form = form.replace(".%f", "%.f")  # polars takes the digits of Python's %f for nanoseconds
    try:
        zone = "UTC" if "%z" in form else None
        return values.str.to_datetime(form, time_unit="us", strict=False, time_zone=zone).dt.replace_time_zone(None)
    except pl.exceptions.PolarsError:  # an invalid format
        return pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))


def parse_timestamps(
    frame: pl.DataFrame,
    column: str,
    path: Path,
    called: str | None = None,
    form: str | None = None,
    missing: Literal["error", "drop"] | None = None,
) -> Times:
    """Convert a column of times to Int64 seconds since 1970.

    If any time is finer than a second, the frame also gets a column `SUBSECOND`.

    Args:
        frame, column: the log and its column of times.
        path, called: the file and the name of the column in it, for messages.
        form: strptime format of text times. Default: accept seconds, milliseconds, microseconds and nanoseconds
            (detected by size, one unit per column), dates, datetimes, ISO 8601 text, texts in one of `FORMS`, dates
            written as numbers (20240131) and spreadsheet days.
        missing: with `drop`, times that are empty or NaN become null; with `error`, the message about them names
            the setting that drops them. Default: an error.

    Raises:
        DataError: a time is missing, NaN or unreadable, two units are mixed, or a text may be two dates, such as
            03/04/2025.
    """
    called = called or column
    raw = stripped(frame[column])
    is_missing = _is_missing(raw)
    raw = raw.to_frame().select(pl.when(~is_missing).then(raw)).to_series().alias(column)
    if missing == "drop" and is_missing.all():
        return Times(frame.with_columns(pl.lit(None, pl.Int64).alias(column)), "")

    def refuse(bad: pl.Series, expected: str, remedy: str) -> None:
        if missing == "drop":  # the rows are dropped later, so that messages name the lines of the file
            bad = bad & ~is_missing
        elif missing and (bad & is_missing).any():
            only_missing = not (bad & ~is_missing).any()
            remedy = f"{'correct these rows' if only_missing else remedy}, or {_DROP}"
        refuse_bad(frame[column], bad, path, called, expected, remedy)

    def dated(moments: pl.Series, expected: str, remedy: str = REMEDY, read_as: str = "") -> Times:
        refuse(moments.is_null(), expected, remedy)
        return Times(_with_times(frame, column, moments.dt.epoch("us"), 10**6), read_as if len(frame) else "")

    if form:
        moments = _moments(cast_column(raw, pl.String, path, called, "dates"), form)
        return dated(moments, f"a date in the format {form}", _OTHER_FORMAT)
    if raw.dtype in (pl.Date, pl.Datetime):
        return dated(raw.cast(pl.Datetime("us")), "a date", read_as=_DATED)
    expected = "seconds since 1970 or an ISO 8601 date"
    values = cast_column(raw, pl.Float64, path, called, "dates or seconds since 1970")
    if raw.dtype == pl.String and values.is_null().all() and not raw.is_null().all():
        is_iso = raw.str.contains(_ISO).fill_null(False)
        if not is_iso.any() and (forms := date_forms(raw)):
            if len(forms) > 1:
                either = f"{raw.drop_nulls()[0]!r} may be a date in the format {' or '.join(forms)}"
                raise DataError(f"{path}, column {called}: {either}; {_NAME_IT}")
            return dated(_moments(raw, forms[0]), f"a date in the format {forms[0]}", _OTHER_FORMAT, forms[0])
        dates = raw.set(~is_iso, None)
        moments = dates.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        if moments.is_null().all():
            moments = dates.str.to_date(strict=False).cast(pl.Datetime("us"))
        return dated(moments, expected, f"correct or drop these rows, or {_NAME_IT}", _ISO_TEXT)
    bad = ~(values.is_finite() & (values.abs() < _LATEST)).fill_null(False)
    refuse(bad, expected, REMEDY)
    _check_windows(raw, values, path, called)
    if written := _written_dates(values):
        moments, form = written
        return dated(moments, f"one of {form}, as other values are", read_as=form)
    whole = raw.cast(pl.Int64, strict=False)  # Float64 does not represent every nanosecond
    is_whole = (whole.cast(pl.Float64) == values) | values.is_null()
    numbers = whole if is_whole.all(ignore_nulls=False) else values
    unit, per_second = _unit(raw, values, path, called)
    return Times(_with_times(frame, column, numbers, per_second), unit)


def _check_windows(raw: pl.Series, values: pl.Series, path: Path, called: str) -> None:
    """Raise DataError if all times are of a scale of Windows, which would be read as nanoseconds since 1970."""
    known = values.drop_nulls()
    for scale, to_1970 in _WINDOWS.items():
        first, last = (to_1970 + steps for steps in _WINDOWS_YEARS)
        if len(known) and known.is_between(first, last).all():
            raise DataError(
                f"{path}, column {called}: {raw.drop_nulls()[0]!r} looks like {scale} in steps of 100 nanoseconds; "
                f"convert the times to seconds since 1970: (time - {to_1970}) // {10**7}"
            )


def _is_missing(raw: pl.Series) -> pl.Series:
    """Return whether a time [n] is null, an empty text, or NaN."""
    is_missing = raw.is_null()
    if raw.dtype == pl.String:
        is_missing |= raw.str.to_lowercase().is_in(_EMPTY)
    elif raw.dtype.is_float():
        is_missing |= raw.is_nan()
    return is_missing.fill_null(True)


def _with_times(frame: pl.DataFrame, column: str, times: pl.Series, per_second: int) -> pl.DataFrame:
    """Return `frame` with `times` as seconds, and as microseconds after them if any time is finer than a second."""
    if times.dtype.is_integer():
        seconds = times // per_second
        micros = (times - seconds * per_second) * 10**6 // per_second
    else:
        seconds = (times / per_second).floor()
        micros = ((times / per_second - seconds) * 10**6).round()
    frame = frame.with_columns(seconds.cast(pl.Int64).alias(column))
    return frame.with_columns(micros.cast(pl.Int64).alias(SUBSECOND)) if (micros != 0).any() else frame


def _written_dates(values: pl.Series) -> tuple[pl.Series, str] | None:
    """Parse dates that are written as numbers; return times, null for invalid ones, and the format; else None.

    More than half of the numbers must be existing days: 1 in 27 numbers of this size is one by chance.
    """
    if len(values) and values.is_between(*_EXCEL_DAYS).all():
        seconds = ((values - _EXCEL_1970) * 86_400).round().cast(pl.Int64)
        return pl.from_epoch(seconds, "s").cast(pl.Datetime("us")), _SPREADSHEET
    for form, least in _WRITTEN.items():
        alike = values.is_between(1900 * least, 2100 * least) & (values == values.floor())
        if alike.any():
            texts = values.set(~alike, None).cast(pl.Int64).cast(pl.String)
            moments = texts.str.to_datetime("%Y%m%d%H%M%S"[: len(form) - 2], time_unit="us", strict=False)
            if 2 * (len(moments) - moments.null_count()) > values.count():
                return moments, f"dates in the format {form}"
    return None


def _unit(raw: pl.Series, values: pl.Series, path: Path, called: str) -> tuple[str, int]:
    """Return the unit of these times ("" if all are zero) and its number per second.

    Raise DataError if units are mixed.
    """
    unit = pl.Series(np.searchsorted(_UNIT_BOUNDS, values.abs().to_numpy()))
    nonzero = values != 0  # zero is 1970 in every unit
    if not nonzero.any():
        return "", 1
    first_unit = int(first_of(unit, nonzero))
    differs = nonzero & (unit != first_unit)
    if differs.any():
        raise DataError(
            f"{path}, {first_line(differs, path)}, column {called}: {first_of(raw, differs)!r} looks like "
            f"{_UNITS[first_of(unit, differs)][0]} since 1970, {first_of(raw, nonzero)!r} "
            f"({first_line(nonzero, path)}) like {_UNITS[first_unit][0]}; write all times in one unit"
        )
    return _UNITS[first_unit]
