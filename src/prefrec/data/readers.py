"""Read tables and JSON lines from disk, with errors that name file, line, column and remedy."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefrec.errors import DataError

TAB_SUFFIXES = (".tsv", ".tab", ".inter", ".item", ".dat", ".txt", ".data")
HEADERLESS = (".data", ".jsonl", ".ndjson")
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, UnicodeError)
"""Errors that `read_parquet` raises on a damaged file."""
SUBSECOND = "subsecond"
"""Column of a log with times finer than a second: microseconds after `timestamp`."""
FILE_ORDER = "file-order"
"""Name of a time column that numbers the lines, for a file without times whose lines are in temporal order."""
# Largest time that 64 bits hold, in nanoseconds since 1970 (the year 2262). Larger numbers are not times.
_LATEST = 2.0**63
# Units of a time since 1970: least size (beyond 0, each begins in 1973), units per second, name.
_UNITS = (
    (0.0, 1, "seconds"),
    (1e11, 10**3, "milliseconds"),
    (1e14, 10**6, "microseconds"),
    (1e17, 10**9, "nanoseconds"),
)
# First and last date accepted as a number of the form yyyymmdd.
_COMPACT = (19700101, 21001231)
# A Float64 holds every whole number up to this one.
_EXACT = 2**53
_DAY_OR_MONTH = r"^(\d{1,2})([/.-])(\d{1,2})([/.-]\d{2,4}\b.*)$"
# Byte order marks. UTF-32 comes before UTF-16, because its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TABLES = {
    "JSON": (".json", ".jsonl", ".ndjson"),
    "Excel": (".xlsx", ".xls", ".xlsm", ".ods"),
}
# Beginning of a JSON text, which no header of a table matches.
_JSON = re.compile(r"\s*[\[{]\s*[\[{\"]")
_READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacked if its name ends in `.gz`.

    Raises:
        DataError: the file is missing, a folder, or a truncated or invalid gzip file.
    """
    _check_file(path)
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path, "rb") as f:
            return f.read()
    except _READ_ERRORS as e:
        raise _gzip_error(path, e) from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a file as text. See `decode` for the encoding; a byte order mark is dropped.

    Raises:
        DataError: errors of `read_bytes` and `decode`.
    """
    return decode(read_bytes(path), path, encoding)


def decode(data: bytes, path: Path, encoding: str) -> str:
    """Return `data` as text; `path` is for the message only.

    A byte order mark decides the encoding, and non-ASCII text that is valid UTF-8 counts as UTF-8. `encoding` is for
    all other files, so one setting serves a data set in which only some files are UTF-8.

    Raises:
        DataError: the bytes are not decodable (the message suggests an encoding), or the encoding is unknown.
    """
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    try:
        " ".encode(encoding)
        if marked is None and not data.isascii() and _decodes(data, "utf-8"):
            return data.decode("utf-8")
        return data.decode("utf-8-sig" if marked == "utf-8" else marked or encoding)
    except LookupError:
        raise DataError(f"{path}: there is no encoding called {encoding!r}; try utf-8, latin-1 or cp1252") from None
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        if marked:
            raise DataError(
                f"{path}, line {line}: begins with the byte order mark of {marked}, but is not {marked} "
                f"({e.reason}); write the file again as UTF-8"
            ) from None
        remedy = (
            "It may be cp1252 (Windows, Western Europe): try --encoding cp1252 (`encoding: cp1252` in a recipe) and "
            "check the accents, or save the file as UTF-8"
            if _decodes(data, "cp1252") and encoding.lower() != "cp1252"
            else "Name the file's encoding with --encoding (`encoding` in a recipe), or save the file as UTF-8"
        )
        raise DataError(f"{path}, line {line}: byte 0x{data[e.start]:02x} is not {encoding}. {remedy}") from None
    except ValueError as e:
        raise DataError(f"{path}: cannot be read as {encoding!r} ({e}); try utf-8, latin-1 or cp1252") from None


def read_table(path: Path, encoding: str = "utf-8", header: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a CSV, TSV, RecBole atomic (`.inter`, `.item`) or Parquet file, also `.gz`, by its suffix.

    Text files give columns of strings only, so ids such as `007` keep their zeros. RecBole's `name:type` headers
    become `name`. Blank lines at the end are ignored. A quotation mark inside a field that does not begin with one is
    text.

    Args:
        header: column names of a tab-separated file that has no header line.

    Raises:
        DataError: missing, unreadable or empty file, JSON or Excel, two columns of one name, a line with more fields
            than the header, or quotation marks that do not pair.
    """
    path = Path(path)
    if path.suffix in (".parquet", ".pq"):
        return _read_parquet(path)
    suffix = (path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix).lower()
    _check_file(path)
    other = next((kind for kind, suffixes in _NO_TABLES.items() if suffix in suffixes), None)
    text = "" if other else _without_blank_end(read_text(path, encoding))
    if other or _JSON.match(text):
        raise DataError(f"{path}: {other or 'JSON'} is not read; write the table as CSV or Parquet")
    if header:
        text = "\t".join(header) + "\n" + text
    names = text.split("\n", 1)[0].rstrip("\r")
    if not names.strip():
        raise DataError(f"{path}: the file is empty; expected a header line with column names")
    separator = _separator(names, suffix)
    quote = None if separator == "\t" else '"'
    frame = _parse_csv(text, path, separator, quote, 1 if header is None else 0)
    plain = [c.split(":", 1)[0].strip() for c in frame.columns]
    twice = next((c for n, c in enumerate(plain) if c in plain[:n]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice!r}; rename one in the header")
    return frame.rename(dict(zip(frame.columns, plain, strict=True)))


def pick_columns(
    frame: pl.DataFrame,
    wanted: Mapping[str, str],
    path: Path,
    optional: Iterable[str] = (),
    options: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return the columns `wanted` (our name → name in the file) under our names.

    Args:
        optional: columns (our names) that may be absent.
        options: column (our name) → the option that sets its name, for the error message.

    Raises:
        DataError: a column is missing; the message lists the existing ones and the nearest name.
    """
    present = {ours: theirs for ours, theirs in wanted.items() if theirs in frame.columns}
    for ours, theirs in wanted.items():
        if ours not in present and ours not in set(optional):
            raise _no_column(frame, ours, theirs, path, (options or {}).get(ours))
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in present.items())


def with_file_order(frame: pl.DataFrame, timestamp: str) -> pl.DataFrame:
    """Return `frame`, with a column `FILE_ORDER` of line numbers if `timestamp` is that name."""
    return frame.with_columns(pl.int_range(pl.len()).alias(FILE_ORDER)) if timestamp == FILE_ORDER else frame


def check_ids(frame: pl.DataFrame, column: str, path: Path, called: str | None = None) -> pl.DataFrame:
    """Return `frame` with `column` as stripped strings.

    Args:
        called: the column's name in the file, for messages.

    Raises:
        DataError: an id is missing or too large a number, or the column has lists or records.
    """
    called = called or column
    kind = frame.schema[column]
    if kind.is_float():  # 12.0 in a Parquet file made by pandas means item 12
        frame = frame.with_columns(pl.col(column).fill_nan(None))
        large = (frame[column].abs() > _EXACT).fill_null(False)
        if large.any():
            value = frame[column][int(large.arg_true()[0])]
            raise DataError(
                f"{path}, {first_line(large, path)}: {called} {value!r} is not an id ({large.sum()} rows): floating "
                "point is not exact beyond 2**53; write ids as text or whole numbers"
            )
        whole = frame[column].drop_nulls()
        frame = frame.with_columns(pl.col(column).cast(pl.Int64)) if bool((whole == whole.floor()).all()) else frame
    frame = frame.with_columns(as_text(frame, column, path, called).str.strip_chars())
    bad = frame[column].is_null() | (frame[column] == "")
    if bad.any():
        raise DataError(
            f"{path}, {first_line(bad, path)}: {called} is empty ({bad.sum()} rows); fill or drop these rows"
        )
    return frame


def as_text(frame: pl.DataFrame, column: str, path: Path, called: str | None = None) -> pl.Series:
    """Return the column as strings; `called` is its name in the file, for messages.

    Raises:
        DataError: the column has lists, records, or bytes that are not text.
    """
    return _cast(frame[column], pl.String, path, called or column, "text or numbers")


def parse_numbers(
    frame: pl.DataFrame,
    column: str,
    path: Path,
    called: str | None = None,
    *,
    may_be_empty: bool = False,
    remedy: str = "correct or drop these rows",
) -> pl.DataFrame:
    """Return `frame` with `column` as Float64.

    Args:
        called: the column's name in the file, for messages.
        may_be_empty: read an empty field and NaN as null instead of raising.
        remedy: the advice at the end of the message.

    Raises:
        DataError: a value is infinite or not a number, or is missing and must not be.
    """
    given = _stripped(frame[column])
    values = _cast(given, pl.Float64, path, called or column, "numbers")
    bad = values.is_null() | ~values.is_finite().fill_null(False)
    if may_be_empty:
        empty = given.is_null() | values.is_nan().fill_null(False)
        empty |= (given == "") if given.dtype == pl.String else False
        bad &= ~empty
        values = values.fill_nan(None)
    _refuse_bad(frame[column], bad, path, called or column, "a number", remedy)
    return frame.with_columns(values.alias(column))


def parse_timestamps(
    frame: pl.DataFrame, column: str, path: Path, called: str | None = None
) -> tuple[pl.DataFrame, list[str]]:
    """Return `frame` with `column` as Int64 seconds since 1970, and notes on how the times were read.

    Accepts seconds, milliseconds, microseconds and nanoseconds (recognised by size, one unit per column), columns of
    dates as numbers (20200131), dates, datetimes, ISO 8601 text, and text with the day or the month first if the
    values show which. If any time is finer than a second, the frame also gets a column `SUBSECOND`, to the
    microsecond.

    Args:
        called: the column's name in the file, for messages.

    Raises:
        DataError: a time is missing, NaN or unreadable, two units are mixed, or it is unclear whether the day or the
            month comes first.
    """
    called = called or column
    raw = _stripped(frame[column])
    if raw.dtype in (pl.Date, pl.Datetime):
        moments = raw.cast(pl.Datetime("us"))
        _refuse_bad(raw, moments.is_null(), path, called, "a date")
        return _with_moments(frame, column, moments), []
    values = _cast(raw, pl.Float64, path, called, "dates or seconds since 1970")
    expected = "seconds since 1970 or an ISO 8601 date"
    if raw.dtype == pl.String and values.is_null().all() and not raw.is_null().all():
        ordered, notes = _day_first(raw, path, called)
        stamps = ordered.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        if stamps.is_null().all():
            stamps = ordered.str.to_date(strict=False).cast(pl.Datetime("us"))
        _refuse_bad(frame[column], stamps.is_null(), path, called, expected)
        _refuse_bad(frame[column], stamps.dt.year() < 1000, path, called, "a date with a year of four digits")
        _refuse_day_or_month(ordered, path, called)
        return _with_moments(frame, column, stamps), notes or [f"{path.name}: times read as ISO 8601 text"]
    bad = values.is_null() | ~(values.is_finite() & (values.abs() < _LATEST)).fill_null(False)
    _refuse_bad(frame[column], bad, path, called, expected)
    numbers = _exact(raw, values)
    days = _compact_dates(numbers)
    if days is not None:
        return _with_moments(frame, column, days), [f"{path.name}: times read as dates of the form yyyymmdd"]
    per_second, unit = _unit(raw, values, path, called)
    notes = [] if per_second == 1 else [f"{path.name}: times read as {unit}"]
    if numbers.dtype.is_integer():
        seconds = numbers // per_second
        return _with_times(frame, column, seconds, (numbers - seconds * per_second) * 10**6 // per_second), notes
    seconds = (values / per_second).floor()
    return _with_times(
        frame, column, seconds.cast(pl.Int64), ((values / per_second - seconds) * 10**6).round()
    ), notes


def time_columns(log: pl.DataFrame) -> list[str]:
    """Return the columns that order a log in time: `timestamp`, then `SUBSECOND` if present."""
    return ["timestamp", *([SUBSECOND] if SUBSECOND in log.columns else [])]


def _with_moments(frame: pl.DataFrame, column: str, moments: pl.Series) -> pl.DataFrame:
    seconds = moments.dt.epoch("s")
    return _with_times(frame, column, seconds, moments.dt.epoch("us") - seconds * 10**6)


def _with_times(frame: pl.DataFrame, column: str, seconds: pl.Series, micros: pl.Series) -> pl.DataFrame:
    frame = frame.with_columns(seconds.alias(column))
    return frame.with_columns(micros.cast(pl.Int64).alias(SUBSECOND)) if bool((micros != 0).any()) else frame


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line of a JSON-lines file (also `.gz`), read as a stream.

    Raises:
        DataError: missing file, truncated gzip, a line that is not a JSON object, or not UTF-8.
    """
    _check_file(path)
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as f:
            for line, raw in enumerate(f, start=1):
                if raw.strip():
                    yield line, _json_object(raw, path, line)
    except _READ_ERRORS as e:
        raise _gzip_error(path, e, line) from None


def first_words(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_json(data: str | bytes, path: Path, line: int | None = None) -> Any:
    """Return the JSON value in `data`; `path` and `line` are for the message.

    Raises:
        DataError: invalid JSON, nested too deeply, a number too long, or a lone surrogate.
    """
    where = f"{path}, line {line}" if line else str(path)
    try:
        value = json.loads(data)
        halves = "\\ud" in data.lower() if isinstance(data, str) else b"\\ud" in data.lower()
        if halves:  # json accepts a lone surrogate, but no file or tokenizer does
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: not UTF-8 ({e.reason} at byte {e.start})") from None
    except UnicodeEncodeError as e:
        half = e.object[e.start : e.end]
        raise DataError(f"{where}: {half!r} is a lone surrogate (half a character); correct the text") from None
    except json.JSONDecodeError as e:
        where = f"{path}, line {line or e.lineno}, column {e.colno}"
        raise DataError(f"{where}: not valid JSON ({e.msg}); fix or remove the line") from None
    except RecursionError:
        raise DataError(f"{where}: not valid JSON (nested too deeply); fix or remove it") from None
    except ValueError as e:
        raise DataError(f"{where}: not valid JSON ({e}); fix or remove it") from None
    return value


def first_line(bad: pl.Series, path: Path) -> str:
    """Return the location of the first true value: `line 7`, or `row 5` (from 0) in Parquet."""
    index = int(bad.arg_true()[0])
    if path.suffix in (".parquet", ".pq"):
        return f"row {index}"
    return f"line {index + (1 if path.suffix in HEADERLESS else 2)}"


def _no_column(frame: pl.DataFrame, ours: str, theirs: str, path: Path, option: str | None) -> DataError:
    lower = {c.lower(): c for c in frame.columns}
    tries = [t for wish in (theirs, ours) for t in difflib.get_close_matches(wish.lower(), lower, n=1, cutoff=0.5)]
    message = f"{path}: no column {theirs!r} for {ours}; there are {', '.join(map(repr, frame.columns))}."
    message += f" Did you mean {lower[tries[0]]!r}?" if tries else ""
    return DataError(message + (f" Name the right one with {option}" if option else ""))


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file")
    if not path.exists():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
            if path.parent.is_dir()
            else []
        )
        raise DataError(f"{path}: no such file." + (f" Did you mean {near[0]!r}?" if near else " Check the path"))


def _gzip_error(path: Path, error: Exception, line: int | None = None) -> DataError:
    where = f" after line {line}" if line else ""
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped" in str(error):
        return DataError(f"{path}: the name ends in .gz but the content is not gzip; unpack or rename it")
    return DataError(f"{path}: the gzip file is truncated or damaged{where} ({error}); download it again")


def _json_object(raw: bytes, path: Path, line: int) -> dict[str, Any]:
    value = load_json(raw, path, line)
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {line}: expected a JSON object, found {type(value).__name__}")
    return value


def _cast(values: pl.Series, kind: type[pl.DataType], path: Path, called: str, expected: str) -> pl.Series:
    """Return the column as `kind`, with null for each value that is not one."""
    dtype = values.dtype
    try:
        if dtype.is_nested() or (dtype.is_temporal() and kind is not pl.String):
            raise pl.exceptions.InvalidOperationError
        return values.cast(kind, strict=kind is pl.String)
    except pl.exceptions.PolarsError:
        raise DataError(
            f"{path}, column {called}: {dtype} is not {expected}; write the file with another type"
        ) from None


def _stripped(values: pl.Series) -> pl.Series:
    return values.str.strip_chars() if values.dtype == pl.String else values


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _separator(header: str, suffix: str) -> str:
    expected = "\t" if suffix in TAB_SUFFIXES else ","
    if expected in header:
        return expected
    return next((s for s in ("\t", ",", ";", "|") if s in header), expected)


def read_parquet(path: Path) -> pl.DataFrame:
    """Read an untrusted Parquet file. Raises one of `UNREADABLE` if it is damaged.

    Arrow decodes the file and checks every offset and text. The decoder of polars crashes the process on some damaged
    files.
    """
    with pq.ParquetFile(path) as file:
        _check_counts(file)
        table = file.read()
    table.validate(full=True)
    return cast(pl.DataFrame, pl.from_arrow(table))


def _check_counts(file: pq.ParquetFile) -> None:
    """Raise OSError if a plain column claims another number of values than rows.

    Arrow allocates memory for the claimed number.
    """
    metadata, count = file.metadata, file.metadata.num_columns
    plain = [j for j in range(count) if metadata.schema.column(j).max_repetition_level == 0]
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for column in (group.column(j) for j in plain):
            if column.num_values != group.num_rows:
                where = f"column {column.path_in_schema} says {column.num_values} values"
                raise OSError(f"{where} in {group.num_rows} rows")


def _read_parquet(path: Path) -> pl.DataFrame:
    _check_file(path)
    try:
        return read_parquet(path)
    except UNREADABLE as e:
        raise DataError(f"{path}: not a readable Parquet file ({first_words(e)}); write it again") from None


def _without_blank_end(text: str) -> str:
    if not text[-2:].isspace():
        return text
    end = text.rstrip()
    return end + text[len(end) :].split("\n", 1)[0] + "\n" if end else ""


def _parse_csv(
    text: str, path: Path, separator: str, quote: str | None, first: int, again: bool = True
) -> pl.DataFrame:
    try:
        # Without a byte order mark polars takes a header that begins with `x^` for a compressed file.
        return pl.read_csv(text.encode("utf-8-sig"), separator=separator, quote_char=quote, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as e:
        if again and quote and quote in text:
            return _parse_csv(_requoted(text, path, separator, first), path, separator, quote, first, again=False)
        lines = text.splitlines()
        expected = lines[0].count(separator)
        wide = next((n for n, row in enumerate(lines, start=first) if row.count(separator) > expected), None)
        if wide and again:
            raise _too_wide(path, wide, expected + 1) from None
        raise DataError(f"{path}: cannot be read as a table: {first_words(e)}") from None


def _requoted(text: str, path: Path, separator: str, first: int) -> str:
    """Return the table with quotes around each field that contains one, such as `7" single`."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line, width = first, 0
    try:
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                raise _too_wide(path, line, width)
            writer.writerow(row)
            line = first + reader.line_num
    except csv.Error:
        raise DataError(
            f"{path}, line {line}: cannot be read as a table: its quotation marks do not pair. Quote the whole field "
            'and double each mark inside it: "7"" single"'
        ) from None
    return out.getvalue()


def _too_wide(path: Path, line: int, fields: int) -> DataError:
    return DataError(f"{path}, line {line}: cannot be read as a table: more than the {fields} fields of the header")


def _exact(raw: pl.Series, values: pl.Series) -> pl.Series:
    """Return the numbers as Int64 if all are whole, else `values`. A Float64 does not hold every nanosecond."""
    whole = raw.cast(pl.Int64, strict=False)
    same = not whole.has_nulls() and bool((whole.cast(pl.Float64) == values).all())
    return whole if same else values


def _compact_dates(numbers: pl.Series) -> pl.Series | None:
    """Return the moments of numbers such as 20200131, or None if any of them is not a date."""
    if not numbers.dtype.is_integer() or not len(numbers) or not bool(numbers.is_between(*_COMPACT).all()):
        return None
    days = numbers.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    return None if days.has_nulls() else days.cast(pl.Datetime("us"))


def _unit(raw: pl.Series, values: pl.Series, path: Path, called: str) -> tuple[int, str]:
    """Return the units per second of these times, and the unit's name. Zero fits any unit.

    Raises:
        DataError: the times are of two units.
    """
    size = values.abs()
    rank = pl.Series(np.searchsorted([least for least, _, _ in _UNITS[1:]], size.to_numpy()))
    tells = size > 0
    if not tells.any():
        return 1, "seconds"
    at = int(tells.arg_true()[0])
    _, per_second, unit = _UNITS[rank[at]]
    unlike = tells & (rank != rank[at])
    if unlike.any():
        other = int(unlike.arg_true()[0])
        strange = _UNITS[rank[other]][2]
        raise DataError(
            f"{path}, {first_line(unlike, path)}, column {called}: {raw[other]!r} looks like {strange} since 1970, "
            f"{raw[at]!r} ({first_line(tells, path)}) like {unit}; write all times in one unit"
        )
    return per_second, unit


def _day_first(dates: pl.Series, path: Path, called: str) -> tuple[pl.Series, list[str]]:
    """Return the dates with the day first (01/31/2020 → 31/01/2020), and notes.

    Raises:
        DataError: some values have the day first and some the month.
    """
    parts = dates.str.extract_groups(_DAY_OR_MONTH).struct.unnest()
    one, cut, other, rest = parts.get_columns()
    first, second = one.cast(pl.Int64), other.cast(pl.Int64)
    days = ((first > 12) & (second <= 12)).fill_null(False)
    months = ((first <= 12) & (second > 12)).fill_null(False)
    if days.any() and months.any():
        one_of_each = (f"{dates[int(b.arg_true()[0])]!r} ({first_line(b, path)})" for b in (days, months))
        raise DataError(
            f"{path}, column {called}: {' begins with the day, '.join(one_of_each)} with the month; write all dates "
            "as year-month-day, such as 2020-01-31"
        )
    if months.any():
        turned = other + cut + one + rest
        return turned.fill_null(dates), [f"{path.name}: times read as text with the month first"]
    return dates, []


def _refuse_day_or_month(dates: pl.Series, path: Path, called: str) -> None:
    """Raise DataError for a column of dates such as 01/02/2020 if no value has a day beyond 12."""
    one, _, other, _ = dates.str.extract_groups(_DAY_OR_MONTH).struct.unnest().get_columns()
    first, second = one.cast(pl.Int64), other.cast(pl.Int64)
    if first.has_nulls() or bool((first > 12).any()) or bool((first == second).all()):
        return
    unlike = first != second
    value = dates[int(unlike.arg_true()[0])]
    raise DataError(
        f"{path}, {first_line(unlike, path)}, column {called}: {value!r} may begin with the day or the month, "
        "and no other value decides; write dates as year-month-day, such as 2020-01-31"
    )


def _refuse_bad(
    given: pl.Series,
    bad: pl.Series,
    path: Path,
    called: str,
    expected: str,
    remedy: str = "correct or drop these rows",
) -> None:
    if bad.any():
        value = given[int(bad.arg_true()[0])]
        raise DataError(
            f"{path}, {first_line(bad, path)}, column {called}: {value!r} is not {expected} "
            f"({bad.sum()} of {len(given)} rows); {remedy}"
        )
