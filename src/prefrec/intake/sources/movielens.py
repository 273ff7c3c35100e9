"""MovieLens: the 100K folder, the copy in the recbole package, and `ratings.csv` with `movies.csv`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from prefrec.data.types import Catalogue
from prefrec.errors import DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.readers import parse_numbers, pick_columns, read_table, read_text
from prefrec.intake.sources.base import Source, SourceKind, check_log, titled, user_attributes
from prefrec.intake.times import parse_timestamps
from prefrec.intake.titles import movie_title, movie_titles

# Columns of the files of users, without the postal code.
_USERS = ("user_id", "age", "gender", "occupation")
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRE = ("unknown", "(no genres listed)")
_LOG = {c: c for c in ("user_id", "item_id", "rating", "timestamp")}


def movielens_100k(config: PrepareConfig) -> Source:
    """Read MovieLens-100K from the folder `config.path`, by default from the embedded copy.

    The folder contains `u.data` and `u.item` (GroupLens), or `ml-100k.inter` and `ml-100k.item` (RecBole). User
    attributes come from `u.user` or `ml-100k.user` if present. The catalogue has the columns `year` and `genres`
    (`Comedy, Drama`).
    """
    folder = config.path or _embedded_folder()
    users = None
    if (folder / "u.data").exists():
        log = _typed(read_table(folder / "u.data", header=list(_LOG)), folder / "u.data")
        lines = [*_raw_fields(folder / "u.item", ("id", "title", "date"), filled=2)]
        raw = {item: title.strip() for item, title, *_ in lines}
        flags = {line[0]: zip(_GENRES, line[5:], strict=False) for line in lines}
        genres = {item: [name for name, flag in of_film if flag.strip() == "1"] for item, of_film in flags.items()}
        if (folder / "u.user").exists():
            fields = [line[: len(_USERS)] for line in _raw_fields(folder / "u.user", ("id", *_USERS[1:]))]
            table = pl.DataFrame(fields, schema=dict.fromkeys(_USERS, pl.String), orient="row")
            users = user_attributes(table, folder / "u.user")
    elif (folder / "ml-100k.inter").exists():
        log = _typed(read_table(folder / "ml-100k.inter"), folder / "ml-100k.inter")
        raw, genres = _atomic_items(folder / "ml-100k.item")
        path = folder / "ml-100k.user"
        if path.exists():
            users = user_attributes(pick_columns(read_table(path), {c: c for c in _USERS}, path), path)
    else:
        raise DataError(f"{folder}: expected u.data and u.item, or ml-100k.inter and ml-100k.item, in this folder")
    return replace(_source(config, log, raw, genres, folder), users=users)


def movielens_csv(config: PrepareConfig) -> Source:
    """Read `ratings.csv` and `movies.csv` of ml-latest, ml-20m, ml-25m or ml-32m."""
    folder = config.required("path")
    ratings, movies = folder / "ratings.csv", folder / "movies.csv"
    log = _typed(read_table(ratings, config.encoding), ratings, _LOG | {"user_id": "userId", "item_id": "movieId"})
    wanted = {"item_id": "movieId", "title": "title", "genres": "genres"}
    items = titled(pick_columns(read_table(movies, config.encoding), wanted, movies, ["genres"]), movies)
    genres = {row["item_id"]: (row.get("genres") or "").split("|") for row in items.iter_rows(named=True)}
    return _source(config, log, dict(items.select("item_id", "title").iter_rows()), genres, folder)


def _embedded_folder() -> Path:
    """Return the folder of MovieLens-100K inside the recbole package, without importing recbole."""
    spec = importlib.util.find_spec("recbole")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "dataset_example" / "ml-100k"
        if folder.is_dir():
            return folder
    raise DataError(
        "the embedded MovieLens-100K comes with the package recbole, which is not installed: "
        "run `pip install --no-deps recbole`, or name the folder of your copy with --path (`path` in a recipe)"
    )


def _source(
    config: PrepareConfig, log: pl.DataFrame, raw: Mapping[str, str], genres: Mapping[str, list[str]], folder: Path
) -> Source:
    titles, kept_as = movie_titles(raw)
    log, dropped = check_log(log, raw, folder, config.missing_titles)
    log = log.with_columns(pl.col("item_id").replace(kept_as))
    merged = len(raw) - len(titles)
    dated = sum(bool(re.search(r"\(\d{4}\)$", title)) for title in titles.values())
    notes = [f"{merged} films were listed under two ids and merged (smaller id kept)"] if merged else []
    notes += [f"{dated} titles show their year because another film has the same name"] if dated else []
    years = [movie_title(raw[item])[1] for item in titles]
    named = (", ".join(g for g in genres.get(item, []) if g not in _NO_GENRE) for item in titles)
    columns = {"item_id": [*titles], "title": [*titles.values()], "year": years, "genres": [n or None for n in named]}
    items = pl.DataFrame(columns, schema_overrides={"year": pl.Int64, "genres": pl.String})
    return Source(config.source, "movies", Catalogue(items), log, dropped + notes)


def _typed(table: pl.DataFrame, path: Path, names: Mapping[str, str] = _LOG) -> pl.DataFrame:
    """Return the log of a table with columns `names` (our name → name in the file), with the right types."""
    log = parse_numbers(pick_columns(table, names, path), "rating", path, names["rating"])
    log, _ = parse_timestamps(log, "timestamp", path, names["timestamp"])
    return log.select("user_id", "item_id", "timestamp", "rating")


def _raw_fields(path: Path, columns: tuple[str, ...], filled: int = 1) -> Iterator[list[str]]:
    """Yield the fields of each non-blank line, which has at least these columns and a non-empty `filled`-th one."""
    for number, line in enumerate(read_text(path, "latin-1").splitlines(), start=1):
        if line.strip():
            fields = line.split("|")
            if len(fields) < len(columns) or not fields[filled - 1].strip():
                raise DataError(f"{path}, line {number}: expected {'|'.join(columns)}|…, found {line[:60]!r}")
            yield fields


def _atomic_items(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return item id → title with its year, and item id → genres."""
    wanted = {"item_id": "item_id", "title": "movie_title", "year": "release_year", "genres": "class"}
    items = titled(pick_columns(read_table(path), wanted, path), path, "movie_title")
    titles, genres = {}, {}
    for item, title, year, names in items.iter_rows():
        genres[item] = (names or "").split()
        title = "unknown" if title == "unkonwn" else title  # item 267, misspelt in RecBole's file
        titles[item] = f"{title} ({year})" if year and (year.isdecimal() or year == "V") else title
    return titles, genres


HUNDRED = SourceKind(movielens_100k, takes=("missing_titles",))
CSV = SourceKind(movielens_csv, takes=("encoding", "missing_titles"))
