"""Data sets as they are published: UCSD's gzipped JSON lines, MovieLens, Last.FM, ready windows."""

# ruff: noqa: E501  # a case a line is a table that can be read

import gzip
import json
from pathlib import Path
from typing import Any

from reliability.corpus.case import Case, Content, command, write

SHELVED = {"user_id": "u", "book_id": "1", "is_read": True, "rating": 4}
SHELVED |= {"date_added": "Wed Jan 10 10:24:35 -0800 2018"}
BOOK = {"book_id": "1", "title": "Emma"}
ROWS = b'user_id,item_ids,timestamp\nu,"[1, 2, 3, 4]",5\nv,"[2, 4, 3, 1]",6\n'
WINDOW = {"history": ["A", "B"], "target": "C", "group": "g"}


def _source(name: str, message: str, source: str, files: dict[str, Content], *options: str) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        (folder / "data").mkdir()
        for file, content in files.items():
            write(folder / "data" / file, content)
        return ("prepare", folder / "out", "--source", source, "--path", folder / "data", *options)

    return command(f"{source}: {name}", message, give)


def _lines(*rows: Any) -> bytes:
    return gzip.compress("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows).encode())


def _books(name: str, message: str, shelf: bytes, books: bytes | None = None, *options: str) -> Case:
    named = {"goodreads_interactions_x.json.gz": shelf, "goodreads_books_x.json.gz": books or _lines(BOOK)}
    return _source(name, message, "goodreads", named, *options)


def _hundred(name: str, message: str, log: Content, items: Content = "1|Alien (1979)|x\n") -> Case:
    return _source(name, message, "movielens-100k", {"u.data": log, "u.item": items})


def _windows(name: str, message: str, first: str) -> Case:
    files = {"windows_train.jsonl": first, "windows_valid_recovered.jsonl": json.dumps(WINDOW)}
    return _source(name, message, "goodreads-windows", files)


def _rows(
    name: str, message: str, train: Content, *options: str, titles: str = '{"1": "A", "2": "B", "3": "C", "4": "D"}'
) -> Case:
    named = {"train.csv": train, "test.csv": ROWS, "id2name.json": titles}
    return _source(name, message, "windows", named, "--candidates.size", "2", *options)


def _artists(name: str, message: str, tags: str, artists: str = "id\tname\n1\tABBA\n") -> Case:
    return _source(name, message, "lastfm-hetrec", {"user_taggedartists.dat": tags, "artists.dat": artists})


def _sessions(name: str, message: str, sessions: str, names: str = "1::ABBA\n") -> Case:
    return _source(name, message, "lastfm-published", {"sequences.tsv": sessions, "id2name.txt": names})


TAGS = "userID\tartistID\ttagID\tday\tmonth\tyear\n"
SPLIT = "session\tsplit\titems\n"

CASES = [
    _source("no files", "expected one goodreads_interactions_<genre>.json.gz, found none; name the files with --interactions and --items", "goodreads", {}),
    _source("two of a kind", "found goodreads_interactions_a.json.gz, goodreads_interactions_b.json.gz", "goodreads", {f"goodreads_interactions_{c}.json.gz": b"" for c in "ab"}),
    _books("cut", "gzip file is truncated or damaged", _lines(*[SHELVED] * 99)[:-20]),
    _books("empty", "the log is empty", _lines()),
    _books("a line that is no JSON", "goodreads_interactions_x.json.gz: truncated, damaged or not valid JSON", _lines(SHELVED, "oops")),
    _books("a date of another kind", "line 1, column date_added: '2018-01-10' is not like 'Wed Jan 10 10:24:35 -0800 2018'", _lines(SHELVED | {"date_added": "2018-01-10"})),
    _books("a user that is null", "goodreads_interactions_x.json.gz, line 2: user_id is empty (1 rows); fill or drop these rows", _lines(SHELVED, SHELVED | {"user_id": None})),
    _books("a book without a title", "1 items of the log have no title in the catalogue", _lines(SHELVED, SHELVED | {"book_id": "2"})),
    _books("other books", "none of the log's 1 items (such as '2') is in the catalogue", _lines(SHELVED | {"book_id": "2"})),
    _books("a rating that is a word", "line 2, column rating: 'five' is not a number (1 of 2 rows); correct or drop the line", _lines(SHELVED, SHELVED | {"rating": "five"})),
    _books("nothing read", "no book is marked as read; keep all shelved books with --no-read-only", _lines(SHELVED | {"is_read": False})),
    _windows("a line cut", "windows_train.jsonl: truncated, damaged or not valid JSON", json.dumps(WINDOW)[:-5]),
    _windows("no group", "windows_train.jsonl, line 1: expected history (titles), target (title) and group", json.dumps({"history": ["A"], "target": "B"})),
    _source("no files", "no train examples; expected a file such as train.csv", "windows", {}),
    _source("no titles", "expected one file of titles, such as id2name.json, items.csv or NAME.item; found none", "windows", {"train.csv": ROWS, "test.csv": ROWS}),
    _rows("no list", "train.csv, line 2, column item_ids: '[1, 2' is not a list of item ids", 'user_id,item_ids,timestamp\nu,"[1, 2",5\n'),
    _rows("other columns", "no column 'item_ids' for items; there are 'user_id', 'list'.", "user_id,list\nu,1 2\n"),
    _rows("no times to cut at", "there are no validation examples, and they cannot be split off the training examples, because they have no times", "user_id,item_ids\nu,1 2 3\n"),
    _rows("one time", "because they all have the same time", "user_id,item_ids,timestamp\nu,1 2 3,5\n"),
    _rows("rows that contradict each other", "examples of user 'u' contradict each other: [1, 3] does not continue [1, 2]", "user_id,item_ids,timestamp\nu,1 2,5\nu,1 3,6\n"),
    _rows("titles that are a list", "expected one JSON object of id → title", ROWS, titles="[]"),
    _rows("a file that there is not", "no such file", ROWS, "--row-files", "validation=x.csv"),
    _source("no files", "expected u.data and u.item, or ml-100k.inter and ml-100k.item, in this folder", "movielens-100k", {}),
    _hundred("a line too short", "u.data, line 1, column rating: None is not a number", "1\t1\n"),
    _hundred("a line too long", "u.data, line 1: cannot be read as a table: more than the 4 fields", "1\t1\t5\t9\t9\n"),
    _hundred("a rating that is a word", "u.data, line 1, column rating: 'x' is not a number", "1\t1\tx\t9\n"),
    _hundred("a title line too short", "u.item, line 1: expected id|title|date|…, found '1|Alien'", "1\t1\t5\t9\n", "1|Alien\n"),
    _hundred("other films", "none of the log's 1 items (such as '2') is among the catalogue's 1 items with a title (such as '1')", "1\t2\t5\t9\n"),
    _source("no films", "movies.csv: no such file", "movielens-csv", {"ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,9\n"}),
    _artists("a column missing", "no column 'year' for year", "userID\tartistID\tday\tmonth\n1\t1\t1\t1\n"),
    _artists("a day beyond all months", "user_taggedartists.dat, line 2: day 99, month 1, year 2009 is not a date; correct or drop the line", TAGS + "1\t1\t1\t99\t1\t2009\n"),
    _artists("too few tags", "no artist has 4 users who tagged it", TAGS + "1\t1\t1\t1\t1\t2009\n"),
    _artists("an artist with two names", "item '1' has 2 titles: 'ABBA' / 'Abba!'", TAGS + "1\t1\t1\t1\t1\t2009\n", "id\tname\n1\tABBA\n1\tAbba!\n"),
    _sessions("a name missing", "id2name.txt, line 1: expected id::name, found '1'", SPLIT + "1\ttrain\t1\n", "1\n"),
    _sessions("a split that there is not", "sequences.tsv, line 2: split is 'dev'; expected train, val or test", SPLIT + "1\tdev\t1 1\n"),
    _sessions("an artist unknown", "session 1 has item '9', absent in id2name.txt", SPLIT + "1\ttrain\t1 9\n"),
    _sessions("no artists in a session", "sequences.tsv, line 2: items is empty", SPLIT + "1\ttrain\t\n"),
]  # fmt: skip
