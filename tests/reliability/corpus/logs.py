"""Logs: CSV, RecBole atomic files, Parquet, gzip; and options that do not fit them."""

# ruff: noqa: E501  # a case a line is a table that can be read

import gzip
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from reliability.corpus.case import Case, Content, command, write

HEADER = "user_id,item_id,timestamp\n"


def _log(
    name: str, message: str, content: Content | Callable[[Path], object], *options: str, file: str = "log.csv"
) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        log = write(folder / file, content)
        items = place.shop / "items.csv"
        return ("prepare", folder / "out", "--source", "files", "--interactions", log, "--items", items, *options)

    return command(f"{file}: {name}", message, give)


def _frame(**columns: Any) -> Callable[[Path], None]:
    good = {"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "timestamp": [5, 6]}
    return pl.DataFrame(good | columns, strict=False).write_parquet


def _without(path: Path) -> None:
    pl.DataFrame({"user_id": ["u1"], "when": [5]}).write_parquet(path)


def _whole(path: Path) -> bytes:
    _frame()(path)
    return path.read_bytes()


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        content = _whole(path)
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def _scratched(path: Path) -> None:
    content = bytearray(_whole(path))
    content[8:40] = bytes(32)
    path.write_bytes(content)


def _good(path: Path) -> None:
    rows = [f"u{u},i{(7 * u + n) % 60},{n}" for u in range(9) for n in range(6)]
    path.write_text(HEADER + "\n".join(rows) + "\n")


_ZIPPED = gzip.compress((HEADER + "u1,i1,5\n" * 99).encode())

CASES = [
    _log("empty", "log.csv: the file is empty; expected a header line with column names", ""),
    _log("header only", "log.csv: the log is empty; expected one line per interaction", HEADER),
    _log("no header", "no column 'user_id' for user_id; there are 'u1', 'i1', '5'", "u1,i1,5\nu2,i2,6\n"),
    _log("no user", "Name the right one with --columns.user", "customer,item_id,timestamp\nu,i1,5\n"),
    _log("a column misspelt", "Did you mean 'user_idd'?", "user_idd,item_id,timestamp\nu,i1,5\n"),
    _log("fields too many", "log.csv, line 3: cannot be read as a table: more than the 3 fields", HEADER + "u,i1,5\nu,i2,6,7\n"),
    _log("fields too few", "log.csv, line 2, column timestamp: None is not seconds since 1970", HEADER + "u,i1\nu,i2,5\n"),
    _log("fields too few, the way out", "or drop the rows without a time with --missing-times drop (`missing_times: drop` in a recipe)", HEADER + "u,i1\nu,i2,5\n"),
    _log("no time at all", "no interaction has a time. Name the right column, or file-order", HEADER + "u,i1\nu,i2\n", "--missing-times", "drop"),
    _log("a user empty", "log.csv, line 2: user_id is empty (1 rows); fill or drop these rows", HEADER + ",i1,5\n"),
    _log("a word for a time", "line 2, column timestamp: 'yesterday' is not seconds since 1970 or an ISO 8601 date", HEADER + "u,i1,yesterday\n"),
    _log("a time beyond all clocks", "line 2, column timestamp: '1e300' is not", HEADER + "u,i1,1e300\n"),
    _log("a day that there is not", "line 3, column timestamp: '2020-02-31' is not", HEADER + "u,i1,2020-01-02\nu,i2,2020-02-31\n"),
    _log("numbers and dates mixed", "line 3, column timestamp: '2020-01-02' is not", HEADER + "u,i1,5\nu,i2,2020-01-02\n"),
    _log("seconds and milliseconds", "log.csv, line 3, column timestamp: '1577836806000' looks like milliseconds since 1970, '1577836806' (line 2) like seconds; write all times in one unit", HEADER + "u,i1,1577836806\nu,i2,1577836806000\n"),
    _log("days or months first", "log.csv, column timestamp: '01/02/2020' may be a date in the format %d/%m/%Y or %m/%d/%Y; set their format", HEADER + "u,i1,01/02/2020\nu,i2,03/04/2020\n"),
    _log("latin-1", "log.csv, line 2: byte 0xe9 is not utf-8. It may be cp1252 (Windows, Western Europe): try --encoding cp1252 (`encoding: cp1252` in a recipe)", HEADER.encode() + b"Andr\xe9,i1,5\n"),
    _log("UTF-16, cut", "line 1: byte 0x0a is not utf-16", HEADER.encode("utf-16")[:-1]),
    _log("bytes that no Western text has", "byte 0xff is not utf-8. Name the file's encoding with --encoding (`encoding` in a recipe), or save the file as UTF-8", HEADER.encode() + b"\xff\x81,i1,5\n"),
    _log("an encoding that there is not", "unknown encoding 'klingon'; try utf-8, latin-1 or cp1252", HEADER, "--encoding", "klingon"),
    _log("an encoding that does not fit", "byte 0xe9 is not ascii. It may be cp1252", HEADER.encode() + b"Andr\xe9,i1,5\n", "--encoding", "ascii"),
    _log("a quotation mark that does not close", "log.csv, line 2: cannot be read as a table: quotation marks are unbalanced", HEADER + '"u,i1,5\nu,i2,6\n'),
    _log("an item unknown to the catalogue", "drop these interactions with --missing-titles drop (`missing_titles: drop` in a recipe)", HEADER + "u,ghost,5\nu,i1,6\n"),
    _log("no item known to the catalogue", "none of the log's 2 items (such as 'i1.0') is among the catalogue's", HEADER + "u,i1.0,5\nu,i2.0,6\n", "--missing-titles", "drop"),
    _log("JSON lines, cut", "log.jsonl: truncated, damaged or not valid JSON", '{"user_id": "u", "item_id": "i1", "timest', file="log.jsonl"),
    _log("JSON", "log.csv: the file contains JSON; rename it so that it ends in .jsonl", '[\n  {"user_id": "u", "item_id": "i1", "timestamp": 5}\n]\n'),
    _log("Excel", "log.xlsx: Excel files are not supported; save the table as CSV or Parquet", b"PK\x03\x04", file="log.xlsx"),
    _log("a rating that is a word, the way out", "(1 of 3 rows); correct or empty these fields, or ignore the column with --columns.rating none (`columns.rating: null` in a recipe)", "user_id,item_id,timestamp,stars\nu,i1,5,3\nu,i2,6,\nu,i3,6,four\n", "--columns.rating", "stars"),
    _log("an option of another source", "read_only: source files does not use it; remove this setting", _good, "--no-read-only"),
    _log("no rating to filter by", "the log has no ratings: name the column with --columns.rating", _good, "--min-rating", "3"),
    _log("nothing left by the core", "lower min_rating (None), user_core (99) or item_core (1)", _good, "--user-core", "99"),
    _log("more candidates than items", "candidates cannot be sampled from", _good, "--candidates.size", "99"),
    _log("the user's column named twice", "log.inter: two columns are called 'user_id'", "user_id:token\tuser_id:float\titem_id:token\n1\t2\t3\n", file="log.inter"),
    _log("tabs asked for, none there", "no column 'user_id' for user_id; there are 'user_id item_id timestamp'", "user_id item_id timestamp\n1 2 3\n", file="log.tsv"),
    _log("no gzip", "the name ends in .gz, but the content is not gzip; rename the file", HEADER + "u,i1,5\n", file="log.csv.gz"),
    _log("gzip, cut", "the gzip file is truncated or damaged", _ZIPPED[:-12], file="log.csv.gz"),
    _log("gzip, its sum wrong", "the gzip file is truncated or damaged", _ZIPPED[:-8] + bytes(8), file="log.csv.gz"),
    _log("no Parquet", "log.parquet: not a readable Parquet file", HEADER, file="log.parquet"),
    _log("Parquet, cut in half", "log.parquet: not a readable Parquet file", _cut(0.5), file="log.parquet"),
    _log("Parquet, scratched", "log.parquet: not a readable Parquet file", _scratched, file="log.parquet"),
    _log("Parquet, lists for users", "log.parquet, column user_id: expected text or numbers, got type List(String)", _frame(user_id=[["u1"], ["u2"]]), file="log.parquet"),
    _log("Parquet, a user NaN", "log.parquet, row 1: user_id is empty (1 rows)", _frame(user_id=[1.0, float("nan")]), file="log.parquet"),
    _log("Parquet, a user without end", "log.parquet, row 1: user_id inf is not an id (1 rows): floating point", _frame(user_id=[1.0, float("inf")]), file="log.parquet"),
    _log("Parquet, an item beyond whole numbers", "log.parquet, row 0: item_id 1e+20 is not an id", _frame(item_id=[1e20, 2.0]), file="log.parquet"),
    _log("Parquet, a time null", "log.parquet, row 0, column timestamp: None is not", _frame(timestamp=[None, 5]), file="log.parquet"),
    _log("Parquet, durations for times", "log.parquet, column timestamp: expected dates or seconds since 1970, got type Duration", _frame(timestamp=[timedelta(1), timedelta(2)]), file="log.parquet"),
    _log("Parquet, lists for ratings", "log.parquet, column rating: expected numbers, got type List(Int64)", _frame(rating=[[5], [6]]), file="log.parquet"),
    command("the log is a folder of other files", "no column 'user_id' for user_id; there are 'item_id', 'title'", lambda p, f: ("prepare", f / "o", "--source", "files", "--interactions", p.shop, "--items", p.shop / "log.csv")),
    command("the catalogue is a folder", "is a folder; expected a file", lambda p, f: ("prepare", f / "o", "--source", "files", "--interactions", p.shop / "log.csv", "--items", p.shop)),
    command("the log is not there", "logs.csv: no such file. Did you mean 'log.csv'?", lambda p, f: ("prepare", f / "o", "--source", "files", "--interactions", p.shop / "logs.csv", "--items", p.shop / "items.csv")),
]  # fmt: skip
