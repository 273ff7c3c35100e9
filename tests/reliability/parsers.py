"""Everything that reads a file or a text from outside: any bytes give a value or a PrefrecError, nothing else."""

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from prefrec.data import read_prepared
from prefrec.errors import PrefrecError
from prefrec.evaluation import read_predictions
from prefrec.intake.readers import read_table
from prefrec.prompts import load_template
from prefrec.recipe import load_recipe
from prefrec.runs.contents import read_run
from prefrec.runs.stage import is_finished, last_checkpoint
from prefrec_lab.bench.records import read_records
from prefrec_lab.datasets.published import read_published
from read_sources import files, goodreads, goodreads_windows, lastfm_hetrec, lastfm_published, movielens_100k, windows
from reliability.corpus.published import ROW
from reliability.corpus.sources import BOOK, ROWS, SHELVED, SPLIT, TAGS, WINDOW

GOOD_LOG = b"user_id,item_id,timestamp\nu1,i1,5\nu1,i2,6\n"
GOOD_ITEMS = b"item_id,title\ni1,Alien\ni2,Heat\n"


@dataclass(frozen=True)
class Parser:
    name: str
    file: str  # the name under which the bytes are written
    seeds: tuple[bytes, ...]  # good inputs, to be damaged
    read: Callable[[Path], object]  # is given the file
    beside: dict[str, bytes]  # names and contents of the other files of its folder


def survive(parser: Parser, content: bytes, folder: Path) -> bool:
    """True where the content is read, False where it is refused; all other ends are raised."""
    for name, good in parser.beside.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(good)
    path = folder / parser.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        parser.read(path)
    except PrefrecError:
        return False
    return True


def _parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _render(path: Path) -> str:
    return load_template(str(path)).render(["Alien"], ["Heat"])


def _override(path: Path) -> object:
    return load_recipe(path.parent / "good.yaml", [path.read_bytes().decode("utf-8", "replace")])


def _stage(path: Path) -> object:
    return is_finished(path.parent, "k"), last_checkpoint(path.parent.parent)


_LOG = _parquet(user_id=["u1", "u2"], item_id=["i1", "i2"], timestamp=[5, 6], rating=[1.0, 2.0])
_RECIPE = {"name": "x", "align": [{"name": "s-dpo", "beta": 1}], "sft": {"rows": 5}, "evaluate": {"ks": [1]}}
_ROWS = _parquet(user_id=["u"], history=[["i1"]], candidates=[["i1", "i2"]], target=["i2"])
_PREPARED = {
    "protocol.json": b'{"format_version": 3, "domain": "movies"}',
    "items.parquet": _parquet(item_id=["i1", "i2"], title=["Alien", "Heat"]),
    "interactions.parquet": _parquet(user_id=["u"], item_id=["i1"], timestamp=[5]),
    **{f"{part}.parquet": _ROWS for part in ("train", "validation", "test")},
}
_ANSWER = {"ranker": "a", "row": 0, "user_id": "u", "target": "i1", "candidates": ["i1", "i2"], "scores": [1.0, 2.0]}
_ANSWER |= {"rank": 2, "tied": 0, "generated": "Alien", "choice": "i1", "listed": 2}
_ANSWER |= {"class_rank": 2, "class_tied": 0, "class_listed": 2}
_PREDICTIONS = _parquet(**{name: [value] for name, value in _ANSWER.items()})
_TAGS = (TAGS + "".join(f"{u}\t{a}\t1\t1\t4\t2009\n" for u in range(4) for a in range(4))).encode()


def _prepared_but(name: str) -> dict[str, bytes]:
    return {f"data/{k}": v for k, v in _PREPARED.items() if k != name}


def _log(path: Path) -> object:
    return files(path, path.parent / "items.csv", missing_titles="drop")


def _catalogue(path: Path) -> object:
    return files(path.parent / "log.csv", path, missing_titles="drop", duplicate_titles="number")


def _windows(train: Path, titles: Path) -> object:
    return windows({"train": train, "test": train.parent / "test.csv"}, titles, validation_share=0)


def _in_folder(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """The reader of a file, where `read` is given its folder."""
    return lambda path: read(path.parent)


_ITEMS = {"items.csv": GOOD_ITEMS}
_TITLES = b'{"1": "Pen &amp; pad", "2": "Ink", "3": "Pad", "4": "Clip"}'
_OTHER_LOGS = (
    b"user_id,item_id,timestamp\nu1,i1,2020-01-02\n",
    b"user_id,item_id,timestamp,rating\nu1,i1,01/31/2020,\nu1,i2,02/01/2020,4\n",
    b"user_id,item_id,timestamp\nu1,i1,20200131\nu1,i2,20200201\n",
    b"user_id,item_id,timestamp\nu1,i1,1577836806000000000\nu1,i2,1577836806000000001\n",
    b'user_id;item_id;timestamp\n"u;1";i1;1e3\n',
)
_ROWS_AS = {
    "csv": (ROWS, b"user_id,item_ids\nu,[1 2 3]\nv,\"['2', '1', '3']\"\n"),
    "parquet": (_parquet(user_id=["u"], item_ids=[[1, 2, 3]], timestamp=[5]),),
    "inter": (b"user_id:token\titem_id_list:token_seq\titem_id:token\nu\t1 2\t3\n",),
}
_ARTISTS = {"artists.dat": b"id\tname\n0\tCher\n1\tABBA\n2\tU2\n3\tBlur\n"}
_SESSIONS = (SPLIT + "1\ttrain\t1 1 1 1\n").encode()
_TEMPLATES = (
    b"{{ history }} {{ candidates }}",
    b"{% for t in history %}{{ loop.index }}. {{ t | upper }}\n{% endfor %}{{ candidates | join(', ') }}",
)
_OVERRIDES = (b"sft.rows=100", b"align.0.beta=0.5", b"data.columns={user: u}")
_GOOD_RECIPE = yaml.safe_dump(_RECIPE).encode()
_METRICS = b'{"split": "test", "evaluation": {"n": 1, "metrics": {}}}'
_FILMS = b"1|Alien, The (1979)|x\n"

_ALL = (
    Parser("log as CSV", "log.csv", (GOOD_LOG, *_OTHER_LOGS), _log, _ITEMS),
    Parser("log as Parquet", "log.parquet", (_LOG,), _log, _ITEMS),
    Parser("log as gzip", "log.csv.gz", (gzip.compress(GOOD_LOG, mtime=0),), _log, _ITEMS),
    Parser(
        *("catalogue", "items.csv", (GOOD_ITEMS, b'item_id,title\ni1,"Alien ""3"""\ni2,  \n'), _catalogue),
        {"log.csv": GOOD_LOG},
    ),
    Parser("any table", "log.dat", (b"a\tb\n1\t2\n", b"a|b\n1|2\n"), lambda p: read_table(p, "latin-1"), {}),
    Parser("published JSON", "test.json", (json.dumps([ROW, ROW]).encode(), _lines(ROW, ROW)), read_published, {}),
    Parser(
        *("Goodreads shelves", "shelf.json", (_lines(SHELVED, SHELVED | {"user_id": "v"}),)),
        lambda path: goodreads(path, path.parent / "books.json", missing_titles="drop"),
        {"books.json": _lines(BOOK)},
    ),
    Parser(
        *("Goodreads books", "books.json", (_lines(BOOK, {"book_id": 2, "title": ""}),)),
        lambda path: goodreads(path.parent / "shelf.json", path, missing_titles="drop"),
        {"shelf.json": _lines(SHELVED)},
    ),
    Parser(
        *("Goodreads windows", "windows_train.jsonl", (_lines(WINDOW, WINDOW),), _in_folder(goodreads_windows)),
        {"windows_valid_recovered.jsonl": _lines(WINDOW)},
    ),
    *(
        Parser(
            *(f"windows as {suffix}", f"train.{suffix}", seeds),
            lambda path: _windows(path, path.parent / "titles.json"),
            {"test.csv": ROWS, "titles.json": _TITLES},
        )
        for suffix, seeds in _ROWS_AS.items()
    ),
    Parser(
        *("titles of windows", "titles.json", (_TITLES,)),
        *(lambda path: _windows(path.parent / "test.csv", path), {"test.csv": ROWS}),
    ),
    Parser(
        *("MovieLens ratings", "u.data", (b"1\t1\t5\t874965758\n2\t1\t3\t876893171\n",), _in_folder(movielens_100k)),
        {"u.item": _FILMS},
    ),
    Parser(
        *("MovieLens titles", "u.item", (_FILMS + b"2|Heat (1995)|y\n",), _in_folder(movielens_100k)),
        {"u.data": b"1\t1\t5\t9\n"},
    ),
    Parser("Last.FM tags", "user_taggedartists.dat", (_TAGS,), _in_folder(lastfm_hetrec), _ARTISTS),
    Parser(
        *("Last.FM sessions", "sequences.tsv", (_SESSIONS,), _in_folder(lastfm_published)),
        {"id2name.txt": b"1::ABBA\n"},
    ),
    Parser("template", "own.jinja2", _TEMPLATES, _render, {}),
    Parser("recipe", "recipe.yaml", (_GOOD_RECIPE,), load_recipe, {}),
    Parser("override of a recipe", "override.txt", _OVERRIDES, _override, {"good.yaml": _GOOD_RECIPE}),
    Parser(
        *("protocol of prepared data", "data/protocol.json", (_PREPARED["protocol.json"],)),
        *(_in_folder(read_prepared), _prepared_but("protocol.json")),
    ),
    Parser(
        *("rows of prepared data", "data/test.parquet", (_ROWS,), _in_folder(read_prepared)),
        _prepared_but("test.parquet"),
    ),
    Parser("predictions", "predictions.parquet", (_PREDICTIONS,), read_predictions, {}),
    Parser(
        *("records of measurements", "records.jsonl", (_lines({"kind": "measurement", "section": "steps"}),)),
        *(_in_folder(read_records), {}),
    ),
    Parser("state of a stage", "sft/stage.json", (b'{"key": "k", "finished": true}',), _stage, {}),
    Parser(
        *("metrics of a run", "run/metrics.json", (_METRICS,), _in_folder(read_run)),
        {"run/recipe.yaml": b"name: x\n"},
    ),
)
PARSERS: dict[str, Parser] = {parser.name: parser for parser in _ALL}
