"""Read tables and JSON lines. Errors name the file, the line, the column and the remedy."""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, cast

import polars as pl

from prefrec.data.parquet import PARQUET, UNREADABLE, Shrink, mib, most_unpacked, read_parquet
from prefrec.errors import DataError, first_words, nearest, without_parts_of, without_secrets
from prefrec.files import check_spelling

FILE_ORDER = "file-order"
"""Name of a time column that numbers the lines, for a file without times whose lines are in temporal order."""
FILE_NAME = "file-name"
"""Name of a column of kinds that holds the name of the file, for a log with a file for each kind of lines."""
_TAB_SUFFIXES = (".tsv", ".tab", ".inter", ".item", ".dat", ".txt", ".data")
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_HEADERLESS = (".data", *_JSON_SUFFIXES)
_EXCEL = (".xlsx", ".xls", ".xlsm", ".ods")
_PICKLES = (".df", ".pkl", ".pickle")
# Files of research data without a header line → their columns.
_BARE = {
    "u.data": ("user_id", "item_id", "rating", "timestamp"),
    "u.item": ("item_id", "title", "release_date", "video_date", "url", *(f"genre_{n}" for n in range(19))),
    "ratings.dat": ("user_id", "item_id", "rating", "timestamp"),
    "movies.dat": ("item_id", "title", "genres"),
    "id2name.txt": ("item_id", "title"),
}
# Beginning of a JSON text; no table header looks like this.
_JSON = re.compile(r"\s*[\[{]\s*[\[{\"]")
# Byte order mark → encoding.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Beginnings of files that polars would unpack without a limit: gzip, zstd, zlib.
_GZIP = b"\x1f\x8b"
_COMPRESSED = (_GZIP, b"\x28\xb5\x2f\xfd", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# Number of characters in which the field separator is searched.
_LOOKED_AT = 200
# Number of bytes in which the form of JSON is searched.
_BEGIN = 1000
# A number with a decimal comma, with or without points between thousands.
_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$"
# Bits of a floating-point number: two integers from 2 to this power on may be the same number.
_EXACT, _EXACT_32 = 53, 24
# Most columns, and characters of a name, in a message: the header of a binary file can be the whole file.
_NAMES, _NAME_CHARS = 30, 60
REMEDY = "correct or drop these rows"
_DROP_USERS = "--missing-users drop (`missing_users: drop` in a recipe)"
ADDRESS = re.compile(r"(?:^|/)([a-z][a-z0-9]+):/+(.+)")
"""An address such as `s3://bucket/key`, as it looks in a path: with one slash, and after the folder of a recipe."""
IDS = pl.Categorical(pl.Categories("prefrec"))
"""In-memory type of ids: codes of 4 bytes."""


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in `.gz`. Raise DataError if it is missing, a folder or damaged."""
    with _open(path) as file:
        if not _is_gzip(path):
            return file.read()
        most = most_unpacked(path)
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(
            f"{path}: unpacked it has more than {mib(most)}; if you trust it, unpack it yourself (gunzip) and "
            "name the unpacked file"
        )
    return content


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a file as text without its byte order mark, decompressed if its name ends in `.gz`.

    A byte order mark determines the encoding, and non-ASCII text that is valid UTF-8 is read as UTF-8. `encoding`
    applies to all other files, so one setting works for a data set in which only some files are UTF-8. Raise
    DataError if the file cannot be read or decoded, or the encoding is unknown.
    """
    data = read_bytes(path)
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    try:
        " ".encode(encoding)  # an unknown encoding is an error even if the file is UTF-8
        is_utf8 = not data.isascii() and _decodes(data, "utf-8")
        return data.decode(marked or ("utf-8" if is_utf8 else encoding))
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        remedy = "Name the file's encoding with --encoding (`encoding` in a recipe)"
        if not marked and encoding.lower() != "cp1252" and _decodes(data, "cp1252"):
            western = "It may be cp1252 (Windows, Western Europe): try --encoding cp1252"
            remedy = f"{western} (`encoding: cp1252` in a recipe) and check the accents"
        what = f"byte 0x{data[e.start]:02x} is not {marked or encoding}"
        raise DataError(f"{path}, line {line}: {what}. {remedy}, or save the file as UTF-8") from None
    except (LookupError, ValueError):
        raise DataError(f"{path}: unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252") from None


def read_table(
    path: Path, encoding: str = "utf-8", header: Sequence[str] | None = None, shrink: Shrink = lambda table: table
) -> pl.DataFrame:
    """Read a CSV, TSV, RecBole atomic (`.inter`, `.item`), JSON lines or Parquet file; the suffix decides.

    Text files may be compressed (`.gz`). All their columns are strings, so ids such as `007` keep their zeros.
    RecBole's `name:type` headers become `name`. In a field that does not begin with a quotation mark, and in all of a
    tab-separated file, quotation marks are text: RecBole has titles such as `"Weird Al" Yankovic`.

    Args:
        path: the file, or the address of Parquet files, such as `s3://bucket/*.parquet`.
        encoding: encoding of text files that are not UTF-8.
        header: column names of a tab-separated file without a header line.
        shrink: applied to Parquet only.

    Raises:
        DataError: the file is missing, unreadable, empty, Excel, or JSON with another suffix; two columns have the
            same name, a line has too many fields, or quotation marks are unbalanced.
    """
    path = Path(path)
    if address := ADDRESS.search(path.as_posix()):
        url = "://".join(address.groups())
        try:
            return shrink(pl.scan_parquet(url)).collect(engine="streaming")
        except UNREADABLE as e:
            reason = without_parts_of(url, first_words(e))
            remedy = "check the address and the credentials"
            raise DataError(f"{path}: not a readable Parquet file ({reason}); {remedy} in the environment") from None
    _check_file(path)
    if is_parquet(path):
        try:
            return read_parquet(path, shrink)
        except UNREADABLE as e:
            raise DataError(f"{path}: not a readable Parquet file ({first_words(e)}); write it again") from None
    suffix = _suffix(path)
    if suffix in _EXCEL:
        raise DataError(f"{path}: Excel files are not supported; save the table as CSV or Parquet")
    if suffix in _PICKLES:  # as in LLaRA's data
        how = "if you trust its source, convert it with pandas.read_pickle(…).to_parquet(…)"
        raise DataError(f"{path}: pickles are not supported, because they can run any code; {how}")
    if suffix in _JSON_SUFFIXES:
        return read_json_rows(path)
    text = read_text(path, encoding)
    text = _without_blank_end(text if "\n" in text else text.replace("\r", "\n"))  # lines of an old Macintosh
    if _JSON.match(text):
        raise DataError(f"{path}: the file contains JSON; rename it so that it ends in .jsonl")
    if text[:1].isdecimal():
        header = header or _BARE.get(_plain_name(path))
    if "::" in text[:_LOOKED_AT].split("\n", 1)[0]:  # MovieLens-1M and LLaRA
        text = text.replace("::", "\t")
    elif header and "|" in text[:_LOOKED_AT]:
        text = text.replace("|", "\t")
    if header:
        text = "\t".join(header) + "\n" + text
    names = text.split("\n", 1)[0].rstrip("\r")
    if not text:
        raise DataError(f"{path}: the file is empty; expected a header line with column names")
    if not names.strip():
        raise DataError(f"{path}: line 1 is blank; expected a header with column names there: drop the blank lines")
    separator = _separator(names, suffix)
    _refuse_twice([name for name in map(_without_type, _header(text, separator)) if name], path)
    frame = _parse_csv(text, path, separator, 1 if header is None else 0)
    plain = [*map(_without_type, frame.columns)]
    _refuse_twice(plain, path)  # the names of `:token,:float`, which are empty, are the same only without their types
    return frame.rename(dict(zip(frame.columns, plain, strict=True)))


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its suffix."""
    return path.suffix.lower() in PARQUET


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _plain_name(path: Path) -> str:
    """Return the name of a file in lower case, without `.gz`."""
    return path.name.lower().removesuffix(".gz")


def _suffix(path: Path) -> str:
    return Path(_plain_name(path)).suffix


def _separator(names: str, suffix: str) -> str:
    """Return the field separator of a table whose first line is `names`."""
    expected = "\t" if suffix in _TAB_SUFFIXES else ","
    return max((expected, "\t", ",", ";", "|"), key=names.count)  # the first of those with the most occurrences


def _header(text: str, separator: str) -> list[str]:
    """Return the names in a table's header as they are: polars would rename the second of two equal ones."""
    lines = (line[0] for line in re.finditer(r".*\n?", text))
    try:
        return next(csv.reader(lines, delimiter=separator, quoting=_quoting(separator)), [])
    except csv.Error:  # what is wrong is said when the table is parsed
        return []


def _without_type(name: str) -> str:
    """Return a column name without RecBole's type."""
    return name.split(":", 1)[0].strip()


def _refuse_twice(names: list[str], path: Path) -> None:
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {_shown([twice])}; rename one in the header")


def read_json_rows(path: Path, schema: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Read JSON lines or a JSON array of objects. Line n is row n; an absent field is null.

    The file may be compressed (`.gz`). Lines may also be Python dicts, as in older files of Amazon and Steam.
    `schema` are the columns to read and their types; by default all, with inferred types. Raise DataError if the file
    is missing, damaged or not JSON of this form, or if it is empty and there is no schema.
    """
    with _open(path) as file:
        begin = file.read(_BEGIN)
    # polars knows no byte order mark, so the text without it is read from memory.
    marked = read_text(path).encode() if begin.startswith((*_MARKS,)) else None
    begin = begin if marked is None else marked[:_BEGIN]
    if len(begin) < _BEGIN and not begin.strip():
        if schema is not None:  # then the columns are known without a line
            return pl.DataFrame(schema=schema)
        raise DataError(f"{path}: the file is empty; expected one JSON object per line")
    begin = begin.lstrip()
    if begin.startswith(_COMPRESSED):
        what = "compressed twice" if _is_gzip(path) else "compressed, but its name does not end in .gz"
        raise DataError(f"{path}: the content is {what}; unpack it, or rename it")
    is_array, is_python = begin[:1] == b"[", re.match(rb"\{\s*u?'", begin) is not None
    try:
        if is_python:
            lines = read_text(path).splitlines()
            return pl.from_dicts([ast.literal_eval(line) for line in lines if line], schema)
        if is_array:
            return pl.read_json(marked or read_bytes(path), schema=schema, infer_schema_length=None)
        # Not the path, in which polars would expand characters such as *. polars unpacks what looks compressed.
        if marked or _is_gzip(path):
            content = io.BytesIO(marked or read_bytes(path))
            return pl.scan_ndjson(content, schema=schema, infer_schema_length=None).collect()
        with path.open("rb") as file:
            return pl.scan_ndjson(file, schema=schema, infer_schema_length=None).collect()
    except DataError:
        raise
    except (*UNREADABLE, ValueError, SyntaxError, MemoryError, RecursionError) as e:
        raise DataError(
            f"{path}: truncated, damaged or not valid JSON ({first_words(e)}); correct it, or download it again"
        ) from None


def pick_columns(
    frame: pl.DataFrame,
    wanted: Mapping[str, str],
    path: Path,
    optional: Iterable[str] = (),
    options: Mapping[str, str] | None = None,
    missing_users: Literal["error", "drop"] | None = None,
) -> pl.DataFrame:
    """Select and rename columns, and convert ids to text; raise DataError as `check_ids`, or if a column is missing.

    Args:
        frame: the table.
        wanted: our name → name in the file.
        path: the file, for messages.
        optional: our names of columns that may be absent.
        options: our name → field of `ColumnNames` that sets the name, for messages.
        missing_users: as `missing` of `check_ids`, for `user_id`.
    """
    present = {ours: theirs for ours, theirs in wanted.items() if theirs in frame.columns}
    for ours, theirs in wanted.items():
        if ours not in present and ours not in set(optional):
            raise _no_column(frame, ours, theirs, path, (options or {}).get(ours))
    frame = frame.select(pl.col(theirs).alias(ours) for ours, theirs in present.items())
    for column in ("user_id", "item_id"):
        if column in present:
            frame = check_ids(frame, column, path, present[column], missing_users if column == "user_id" else None)
    return frame


def check_ids(
    frame: pl.DataFrame,
    column: str,
    path: Path,
    called: str | None = None,
    missing: Literal["error", "drop"] | None = None,
) -> pl.DataFrame:
    """Return `frame` with a column of ids as stripped strings; clean `IDS` stay as they are.

    Args:
        frame, column: the table and its column of ids.
        path, called: the file and the name of the column in it, for messages.
        missing: with `drop`, missing ids become null; with `error`, the message about them names the setting that
            drops them. Default: an error.

    Raises:
        DataError: an id is missing or too large a number, or the column contains lists or records.
    """
    called = called or column
    if frame.schema[column].is_float():  # pandas writes item 12 as 12.0
        values = frame[column].fill_nan(None)
        bits = _EXACT_32 if values.dtype == pl.Float32 else _EXACT
        large = (values.abs() >= 2**bits).fill_null(False)
        if large.any():
            raise DataError(
                f"{path}, {first_line(large, path)}: {called} {first_of(values, large)!r} is not an id "
                f"({large.sum()} rows): floating point of the type {values.dtype} is not exact from 2**{bits} on; "
                "write ids as text or integers"
            )
        all_whole = (values == values.floor()).fill_null(True).all()
        frame = frame.with_columns((values.cast(pl.Int64) if all_whole else values).alias(column))
    if frame.schema[column] == IDS:
        texts = frame[column].unique().cast(pl.String)
        if ((texts == texts.str.strip_chars()) & (texts != "")).all(ignore_nulls=False):
            return frame
    text = as_text(frame, column, path, called)
    stripped = text.str.strip_chars()  # used only if it differs, so that a long log is in memory once
    frame = frame.with_columns(text if (stripped == text).all() else stripped)
    bad = frame[column].is_null() | (frame[column] == "")
    if not bad.any():
        return frame
    if missing == "drop":
        return frame.with_columns(pl.when(~bad).then(column).alias(column))
    remedy = f"fill or drop these rows{f', with {_DROP_USERS}' if missing else ''}"
    raise DataError(f"{path}, {first_line(bad, path)}: {called} is empty ({bad.sum()} rows); {remedy}")


def as_text(frame: pl.DataFrame, column: str, path: Path, called: str | None = None) -> pl.Series:
    """Return a column (`called` in the file) as strings. Raise DataError for lists, records and undecodable bytes."""
    return cast_column(frame[column], pl.String, path, called or column, "text or numbers")


def parse_numbers(
    frame: pl.DataFrame, column: str, path: Path, called: str | None = None, empty_remedy: str | None = None
) -> pl.DataFrame:
    """Return `frame` with a column (`called` in the file) as Float64.

    Raise DataError if a value is missing, infinite or not a number. If there is an `empty_remedy` (advice for the
    message), empty fields and NaN are allowed and become null.
    """
    given = with_points(stripped(frame[column]))
    values = cast_column(given, pl.Float64, path, called or column, "numbers")
    bad = ~values.is_finite().fill_null(False)
    if empty_remedy:
        empty = given.is_null() | values.is_nan().fill_null(False)
        empty |= (given == "") if given.dtype == pl.String else False
        bad &= ~empty
        values = values.fill_nan(None)
    refuse_bad(frame[column], bad, path, called or column, "a number", empty_remedy or REMEDY)
    return frame.with_columns(values.alias(column))


def with_points(values: pl.Series) -> pl.Series:
    """Replace decimal commas by decimal points, as in 4,5 and 1.234,50.

    If all numbers with commas have three digits after the comma, nothing changes, because 1,234 may be a thousand.
    """
    if values.dtype != pl.String:
        return values
    commas = values.str.contains(_COMMA).fill_null(False)
    if not commas.any() or values.filter(commas).str.contains(r",\d{3}$").all():
        return values
    return values.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True).zip_with(commas, values)


def file_name(path: Path) -> str:
    """Return the last part of a path or an address without its query, for messages."""
    return Path(without_secrets(path.as_posix())).name


def refuse_bad(
    given: pl.Series, bad: pl.Series, path: Path, called: str, expected: str, remedy: str = REMEDY
) -> None:
    """Raise DataError about the first `bad` value, if any."""
    if bad.any():
        raise DataError(
            f"{path}, {first_line(bad, path)}, column {called}: {first_of(given, bad)!r} is not {expected} "
            f"({bad.sum()} of {len(given)} rows); {remedy}"
        )


def first_of(values: pl.Series, marked: pl.Series) -> Any:
    """Return the first value for which `marked` is true."""
    return values.filter(marked)[:1].to_list()[0]


def first_line(bad: pl.Series, path: Path) -> str:
    """Return the location of the first true value: `line 7`, or for Parquet `row 5` (counted from 0)."""
    index = int(bad.arg_true()[0])
    return f"row {index}" if is_parquet(path) else f"line {_line(path, index)}"


def _line(path: Path, row: int) -> int:
    """Return the line of a text file on which a row (from 0) begins.

    The file is read once more, because quoted fields may have several lines.
    """
    name = _plain_name(path)
    if name.endswith(_HEADERLESS):
        return row + 1
    with suppress(DataError, csv.Error), _open(path) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        if name in _BARE and first[:1].isdigit():
            return row + 1
        names = first.decode("latin-1")
        separator = _separator(names, _suffix(path))
        if separator != "\t" and "::" not in names and not first.startswith((*_MARKS,)):
            file.seek(0)
            # Latin-1 reads the bytes of every encoding, and the separators and quotation marks of nearly all.
            reader = csv.reader(io.TextIOWrapper(file, "latin-1", newline="\n"), delimiter=separator)
            for before, _ in enumerate(reader):  # with the header
                if before == row:
                    return reader.line_num + 1
    return row + 2


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if its name ends in `.gz`."""
    _check_file(path)
    try:
        with cast(IO[bytes], gzip.open(path, "rb")) if _is_gzip(path) else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        what = f"the gzip file is truncated or damaged ({e}); download it again"
        if "Not a gzipped" in str(e):
            what = "the name ends in .gz, but the content is not gzip; rename the file"
            with path.open("rb") as file:
                begin = file.read(2)
            if begin == _GZIP:
                what = "there are other bytes behind the end of the gzip data; download it again"
        raise DataError(f"{path}: {what}") from None


def _check_file(path: Path) -> None:
    check_spelling(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file")
    if not path.exists():
        others = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = nearest(path.name, others)
        raise DataError(f"{path}: no such file." + (f" Did you mean {near!r}?" if near else " Check the path"))
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, which may have no end; write its content to a file")


def _shown(names: Sequence[str]) -> str:
    """Return column names for a message, truncated if they are long or many."""
    shown = [repr(n if len(n) <= _NAME_CHARS else f"{n[:_NAME_CHARS]}…") for n in names[:_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _no_column(frame: pl.DataFrame, ours: str, theirs: str, path: Path, field: str | None) -> DataError:
    near = nearest(theirs, frame.columns, cutoff=0.5) or nearest(ours, frame.columns, cutoff=0.5)
    message = f"{path}: no column {theirs!r} for {ours}; there are {_shown(frame.columns)}."
    message += f" Did you mean {near!r}?" if near else ""
    if field:
        message += f" Name the right one with --columns.{field.replace('_', '-')} (`columns.{field}` in a recipe)"
    if field == "timestamp":
        message += f"; if there are no times but the lines are in temporal order, name the column {FILE_ORDER}"
    return DataError(message)


def cast_column(values: pl.Series, kind: type[pl.DataType], path: Path, called: str, expected: str) -> pl.Series:
    """Convert a column to `kind`; values that cannot be converted become null."""
    dtype = values.dtype
    try:
        if dtype.is_nested() or (dtype.is_temporal() and kind is not pl.String):
            raise pl.exceptions.InvalidOperationError
        return values.cast(kind, strict=kind is pl.String)
    except pl.exceptions.PolarsError:
        raise DataError(
            f"{path}, column {called}: expected {expected}, got type {dtype}; write the column with another type"
        ) from None


def stripped(values: pl.Series) -> pl.Series:
    """Strip spaces around the texts of a column."""
    return values.str.strip_chars() if values.dtype == pl.String else values


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _without_blank_end(text: str) -> str:
    if not text[-2:].isspace():
        return text
    end = text.rstrip()
    return end + text[len(end) :].split("\n", 1)[0] + "\n" if end else ""


def _quoting(separator: str) -> Literal[0, 3]:
    return csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL


def _parse_csv(text: str, path: Path, separator: str, first: int) -> pl.DataFrame:
    """Parse a table whose header is on line `first`."""
    quote = None if separator == "\t" else '"'
    try:
        # Without a byte order mark, polars mistakes a header that begins with `x^` for a compressed file.
        return pl.read_csv(text.encode("utf-8-sig"), separator=separator, quote_char=quote, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as e:
        return _parse_slowly(text, path, separator, first, first_words(e))


def _parse_slowly(text: str, path: Path, separator: str, first: int, problem: str) -> pl.DataFrame:
    """Parse a table with Python's `csv`, which treats the quotation mark in `7" single` as text.

    Raise DataError about the first line with too many fields or unbalanced quotation marks, or else about `problem`.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=_quoting(separator),
        strict=True,
    )
    rows: list[list[str | None]] = []
    line = first
    try:
        for row in reader:
            if rows and len(row) > len(rows[0]):
                problem = f"more than the {len(rows[0])} fields of the header"
                raise DataError(f"{path}, line {line}: cannot be read as a table: {problem}")
            rows.append([field or None for field in row] + [None] * (len(rows[0]) - len(row) if rows else 0))
            line = first + reader.line_num
        header, *body = rows
        return pl.DataFrame(body, schema=dict.fromkeys(map(str, header), pl.String), orient="row")
    except csv.Error:
        raise DataError(
            f"{path}, line {line}: cannot be read as a table: quotation marks are unbalanced. Quote the whole field "
            'and double each mark inside it: "7"" single"'
        ) from None
    except pl.exceptions.PolarsError:
        raise DataError(f"{path}: cannot be read as a table: {problem}") from None
