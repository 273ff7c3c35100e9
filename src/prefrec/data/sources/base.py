"""The result type of every source, and the checks that sources share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs

from prefrec.data.readers import as_text, check_ids, refuse_bad
from prefrec.data.titles import INVISIBLE, DuplicateTitles, resolve_duplicates
from prefrec.data.types import Catalogue, PreparedData, Window
from prefrec.errors import DataError

if TYPE_CHECKING:
    from prefrec.data.config import PrepareConfig

# Part → endings of the names of its files, without suffix.
_PART_ENDINGS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
# Column of the catalogue → field of `ColumnNames`.
CATALOGUE_FIELDS = {"item_id": "catalogue_item", "title": "title"}
_ID = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"\[\]()]+)""")


@dataclass(frozen=True)
class GivenSplit:
    """A split that comes with the data.

    Attributes:
        learn: `user_id, item_id` of the interactions to learn from, all of them in the log.
        ordered: true if the log has each user's interactions in temporal order.
    """

    windows: Mapping[str, list[Window]]
    learn: pl.DataFrame
    ordered: bool = True


@dataclass(frozen=True)
class Source:
    """A data set as read, before any choice of protocol.

    Attributes:
        name: the source's name in a recipe.
        domain: `movies`, `music`, `books` or `generic`.
        catalogue: items with titles; every item of `interactions` is in it.
        interactions: `user_id, item_id, timestamp[, rating][, impressions]` (str, str, Int64 seconds, Float64, list
            of str: items that were shown then but not clicked).
        notes: changes made on reading, in words.
        given: the source's own split, or None.
        touched: `user_id, item_id` of all items a user is known to have met, or None if these are `interactions`.
        users: attributes of users (`user_attributes`), or None.
        counts: true if `rating` is a play count and not an opinion.
    """

    name: str
    domain: str
    catalogue: Catalogue
    interactions: pl.DataFrame
    notes: list[str] = field(default_factory=list)
    given: GivenSplit | None = None
    touched: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    counts: bool = False


@dataclass(frozen=True)
class SourceKind:
    """A source that a configuration can name.

    Attributes:
        read: reads the data; it returns `PreparedData` only if their rows are finished.
        takes: the fields of `PrepareConfig` that it takes of those that only some sources take.
        given: true if the data come with their own split.
        splits: true if their log can also be split in other ways.
    """

    read: Callable[[PrepareConfig], Source | PreparedData]
    takes: tuple[str, ...] = ()
    given: bool = False
    splits: bool = False


def find_parts(
    folder: Path, suffixes: Collection[str], parts: Collection[str] = tuple(_PART_ENDINGS)
) -> dict[str, Path]:
    """Return the file of each part in `folder`, by the end of its name before one of the `suffixes` and `.gz`.

    Raise DataError if a part has more than one file.
    """
    files: dict[str, Path] = {}
    stems = {p: name_before(p, suffixes) for p in sorted(Path(folder).glob("*"))}
    for part in parts:
        match [p for p, stem in stems.items() if stem.endswith(_PART_ENDINGS[part])]:
            case [first, second, *_]:
                raise DataError(f"{folder}: {first.name} and {second.name} both look like the {part} rows; keep one")
            case [only]:
                files[part] = only
    return files


def name_before(path: Path, suffixes: Collection[str]) -> str:
    """Return a file's name in lower case without its suffix; "" if that is not one of `suffixes`."""
    name = path.name.lower().removesuffix(".gz")
    return next((name.removesuffix(s) for s in suffixes if name.endswith(s)), "")


def user_attributes(users: pl.DataFrame, path: Path, called: str = "user_id") -> pl.DataFrame:
    """Return `user_id` (in the file: `called`) and the attributes of users, all as text.

    Raise DataError if an id is missing, a user has two lines, or there are no attributes.
    """
    users = check_ids(users, "user_id", path, called)
    twice = users.filter(pl.col("user_id").is_duplicated())["user_id"].to_list()
    if twice:
        raise DataError(f"{path}: user {twice[0]!r} has more than one line; keep one line for each user")
    attributes = [c for c in users.columns if c != "user_id"]
    if not attributes:
        raise DataError(f"{path}: no column but that of the ids; expected attributes of users, such as age")
    return users.select("user_id", *(as_text(users, c, path).str.strip_chars() for c in attributes))


def parse_lists(values: pl.Series, path: Path, called: str, at_least: int = 0) -> pl.Series:
    """Return lists of item ids as text; an empty field is an empty list.

    A value is a list, or its text as JSON, Python and numpy write it, or ids separated by spaces or commas. Raise
    DataError about the first value (in the file: `called`) that is not a list of `at_least` ids.
    """
    lists = [_ids(value) for value in values.to_list()]
    bad = pl.Series([ids is None or len(ids) < at_least for ids in lists], dtype=pl.Boolean)
    refuse_bad(values, bad, path, called, "a list of item ids, such as [1, 2, 3] or 1 2 3")
    return pl.Series(values.name, lists, dtype=pl.List(pl.String))


def _ids(value: Any) -> list[str] | None:
    if value is None:
        return []
    if isinstance(value, str):
        value = _parsed(value.strip())
    if not isinstance(value, list):
        return None
    ids = [str(int(v)) if isinstance(v, float) and v.is_integer() else v for v in value]
    texts = [str(v).strip() for v in ids if isinstance(v, str | int) and not isinstance(v, bool)]
    return texts if len(texts) == len(ids) and all(texts) else None


def _parsed(text: str) -> Any:
    """Return the JSON in a text, or the ids between brackets, commas and spaces; None if brackets do not pair."""
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    if text[:1] + text[-1:] not in ("[]", "()") and not {*"[]()"}.isdisjoint(text[:1] + text[-1:]):
        return None
    return ["".join(groups) for groups in _ID.findall(text)]


def titled(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return the items whose title has a visible character, with titles as trimmed text.

    HTML entities such as `&amp;` are read as their characters, also in further columns.
    Raise DataError if the titles (in the file: `called`) are not text.
    """
    items = items.with_columns(as_text(items, "title", path, called))
    texts = cs.string() - cs.by_name("item_id")
    items = items.with_columns(texts.map_elements(_without_entities, return_dtype=pl.String))
    items = items.with_columns(pl.col("title").str.strip_chars())
    return items.filter(pl.col("title").str.replace_all(INVISIBLE, "") != "")


def _without_entities(text: str) -> str:
    return re.sub(r"&#?\w+;", lambda entity: unescape(entity[0]), text)


def clean_catalogue(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return `item_id, title, …` with trimmed titles and each id once; lines without a title are dropped.

    Raise DataError if the titles (in the file: `called`) are not text, an id has two titles, or no item has a title.
    """
    if items.is_empty():
        raise DataError(f"{path}: the catalogue has no items")
    items = titled(items, path, called)
    if items.is_empty():
        raise DataError(f"{path}: no item has a title (column {called}); name the right column, or add titles")
    items = items.with_columns(pl.col("title").str.replace_all(r"\s+", " "))
    items = items.unique(subset=["item_id", "title"], keep="first", maintain_order=True)
    twice = items.filter(pl.col("item_id").is_duplicated())
    if len(twice):
        item = twice["item_id"][0]
        titles = twice.filter(pl.col("item_id") == item)["title"].to_list()
        raise DataError(
            f"{path}: item {item!r} has {len(titles)} titles: {' / '.join(map(repr, titles[:3]))} "
            f"({twice['item_id'].n_unique()} items like it); keep one line for each item"
        )
    return items


def check_log(
    interactions: pl.DataFrame, item_ids: Collection[str], path: Path, missing: str = "error"
) -> tuple[pl.DataFrame, list[str]]:
    """Return the interactions whose item has a title, and a note on the dropped ones.

    Raise DataError if the log is empty, if none of its items is in `item_ids` (those with a title), or if some are
    not and `missing` is `error` rather than `drop`.
    """
    if interactions.is_empty():
        raise DataError(f"{path}: the log is empty; expected one line per interaction")
    listed = list(item_ids)
    known = interactions["item_id"].is_in(listed)
    if not known.any():
        first = f"of the catalogue's {len(listed):,} with a title (such as {listed[0]!r})" if listed else ""
        raise DataError(
            f"{path}: none of the log's {interactions['item_id'].n_unique():,} items (such as "
            f"{interactions['item_id'][0]!r}) is one {first or 'in the catalogue'}; write the ids alike in both "
            "files, and check the names of the columns"
        )
    unknown = interactions.filter(~known)["item_id"]
    if len(unknown) and missing == "error":
        items = unknown.unique(maintain_order=True).to_list()
        raise DataError(
            f"{path}: {len(items)} items of the log have no title in the catalogue (first: "
            f"{', '.join(map(repr, items[:3]))}; {len(unknown)} interactions). Add their titles, or drop "
            "these interactions with --missing-titles drop (`missing_titles: drop` in a recipe)"
        )
    notes = [f"{len(unknown)} interactions with items without a title were left out"] if len(unknown) else []
    return (interactions.filter(known) if notes else interactions), notes


def merge_duplicates(
    interactions: pl.DataFrame, items: pl.DataFrame, how: DuplicateTitles
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Return log, items and notes after `resolve_duplicates`, with merged ids replaced in the log."""
    items, renamed, notes = resolve_duplicates(items, how)
    columns = {"item_id": pl.col("item_id").replace(renamed)}
    if "impressions" in interactions.columns:
        columns["impressions"] = pl.col("impressions").list.eval(pl.element().replace(renamed))
    return interactions.with_columns(**columns) if renamed else interactions, items, notes
