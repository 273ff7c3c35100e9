"""The result type of every source, and the checks that sources share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from prefrec.data.readers import as_text, check_ids
from prefrec.data.titles import INVISIBLE, DuplicateTitles, resolve_duplicates
from prefrec.data.types import Catalogue, Window
from prefrec.errors import DataError

# Part → endings of the names of its files, without suffix.
_PART_ENDINGS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
LOG_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}


@dataclass(frozen=True)
class GivenSplit:
    """A split that comes with the data.

    Attributes:
        windows: part → its windows.
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
            of str: items that were shown then and not taken).
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


def find_parts(
    folder: Path, suffixes: Collection[str], parts: Collection[str] = tuple(_PART_ENDINGS)
) -> dict[str, Path]:
    """Return the file of each part in `folder`: its name ends in `train`, `val`, `test` or similar.

    Args:
        suffixes: accepted suffixes; `.gz` may follow.

    Raises:
        DataError: a part has more than one file.
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
    suffix = next((s for s in suffixes if name.endswith(s)), None)
    return name.removesuffix(suffix) if suffix else ""


def user_attributes(users: pl.DataFrame, path: Path, called: str = "user_id") -> pl.DataFrame:
    """Return `user_id` and the attributes of users, all as text.

    Args:
        called: the file's name for the user's id, for messages.

    Raises:
        DataError: an id is missing, a user has two lines, or there are no attributes.
    """
    users = check_ids(users, "user_id", path, called)
    twice = users.filter(pl.col("user_id").is_duplicated())["user_id"].to_list()
    if twice:
        raise DataError(f"{path}: user {twice[0]!r} has more than one line; keep one line for each user")
    attributes = [c for c in users.columns if c != "user_id"]
    if not attributes:
        raise DataError(f"{path}: no column but that of the ids; expected attributes of users, such as age")
    return users.select("user_id", *(as_text(users, c, path).str.strip_chars() for c in attributes))


def titled(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return the items that have a title with a visible character, with titles as trimmed text.

    Args:
        called: the file's name for the column of titles, for messages.

    Raises:
        DataError: the titles are not text.
    """
    items = items.with_columns(as_text(items, "title", path, called).str.strip_chars())
    return items.filter(pl.col("title").str.replace_all(INVISIBLE, "") != "")


def clean_catalogue(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return `item_id, title, …` with trimmed titles and each id once; lines without a title are dropped.

    Args:
        called: the file's name for the column of titles, for messages.

    Raises:
        DataError: the titles are not text, an id has two titles, or no item has a title.
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
    interactions: pl.DataFrame, items: pl.DataFrame, path: Path, missing: str = "error"
) -> tuple[pl.DataFrame, list[str]]:
    """Return the interactions whose item has a title, and a note on the dropped ones.

    Args:
        items: the items with a title.
        missing: `error`, or `drop` the interactions of other items.

    Raises:
        DataError: the log is empty, no item has a title, or some have none and `missing` is `error`.
    """
    if interactions.is_empty():
        raise DataError(f"{path}: the log is empty; expected one line per interaction")
    known = interactions["item_id"].is_in(items["item_id"].to_list())
    if not known.any():
        listed = items["item_id"].to_list()
        among = (
            f"of the catalogue's {len(listed):,} with a title (such as {listed[0]!r})"
            if listed
            else "in the catalogue"
        )
        raise DataError(
            f"{path}: none of the log's {interactions['item_id'].n_unique():,} items (such as "
            f"{interactions['item_id'][0]!r}) is one {among}; write the ids alike in both files, and check the names "
            "of the columns"
        )
    if not known.all() and missing == "error":
        unknown = interactions.filter(~known)["item_id"].unique(maintain_order=True).to_list()
        raise DataError(
            f"{path}: {len(unknown)} items of the log have no title in the catalogue (first: "
            f"{', '.join(map(repr, unknown[:3]))}; {int((~known).sum())} interactions). Add their titles, or drop "
            "these interactions with --missing-titles drop (`missing_titles: drop` in a recipe)"
        )
    left_out = int((~known).sum())
    notes = [f"{left_out} interactions with items without a title were left out"] if left_out else []
    return interactions.filter(known), notes


def merge_duplicates(
    interactions: pl.DataFrame, items: pl.DataFrame, how: DuplicateTitles
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Return log, items and notes after `resolve_duplicates`, with merged ids replaced in the log."""
    items, renamed, notes = resolve_duplicates(items, how)
    if renamed:
        interactions = interactions.with_columns(pl.col("item_id").replace(renamed))
        if "impressions" in interactions.columns:
            lists = pl.col("impressions").list.eval(pl.element().replace(renamed))
            interactions = interactions.with_columns(lists)
    return interactions, items, notes
