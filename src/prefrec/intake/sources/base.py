"""The common result type of sources, and checks that they share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from html.entities import html5
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs
from pydantic import TypeAdapter, ValidationError

from prefrec.data.titles import clean_titles
from prefrec.data.types import Catalogue, PreparedData, Window
from prefrec.errors import DataError
from prefrec.intake.ids import other_spelling
from prefrec.intake.readers import as_text, check_ids, pick_columns, read_table, read_text, refuse_bad
from prefrec.intake.titles import INVISIBLE, DuplicateTitles, resolve_duplicates

if TYPE_CHECKING:
    from prefrec.intake.config import PrepareConfig

# Part → endings of its file names, without suffix.
_PART_ENDINGS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
# Column of the catalogue → field of `ColumnNames`.
CATALOGUE_FIELDS = {"item_id": "catalogue_item", "title": "title"}
_TITLES_JSON = TypeAdapter(dict[str, str | dict[str, Any]])
_ID = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"\[\]()]+)""")


@dataclass(frozen=True, eq=False)
class GivenSplit:
    """A split that comes with the data.

    Attributes:
        windows: part → its examples.
        learn: `user_id, item_id` of the interactions to learn from, all of them in the log.
        ordered: whether the log has each user's interactions in temporal order.
    """

    windows: Mapping[str, list[Window]]
    learn: pl.DataFrame
    ordered: bool = True


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as read, before the protocol is applied.

    Attributes:
        name: the source's name in a recipe.
        domain: `movies`, `music`, `books` or `generic`.
        catalogue: items with titles, including all items of `interactions`.
        interactions: `user_id, item_id, timestamp[, rating][, impressions][, weight][, is_target]` (str, str, Int64
            seconds, Float64, list of str, Float64, Boolean). Impressions are items that were shown at that time but
            not clicked.
        notes: changes made on reading, for people.
        given: the source's own split, or None.
        touched: `user_id, item_id` of all items that a user is known to have seen. None: those of `interactions`
            and `besides`.
        besides: `user_id, item_id, timestamp` of what users touched without an interaction, such as purchases that
            they have returned. None: nothing.
        users: attributes of users (`user_attributes`), or None.
        counts: whether `rating` is a play count and not an opinion.
    """

    name: str
    domain: str
    catalogue: Catalogue
    interactions: pl.DataFrame
    notes: list[str] = field(default_factory=list)
    given: GivenSplit | None = None
    touched: pl.DataFrame | None = None
    besides: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    counts: bool = False


@dataclass(frozen=True)
class SourceKind:
    """A source that a configuration can name.

    Attributes:
        read: reads the data. It returns `PreparedData` only if the examples need no further preparation.
        takes: fields of `PrepareConfig` that this source uses, of those that only some sources use.
        given: whether the data come with their own split.
        splits: whether the log can also be split in other ways.
    """

    read: Callable[[PrepareConfig], Source | PreparedData]
    takes: tuple[str, ...] = ()
    given: bool = False
    splits: bool = False


def find_split_files(
    folder: Path, suffixes: Collection[str], parts: Collection[str] = tuple(_PART_ENDINGS)
) -> dict[str, Path]:
    """Return the file of each part in `folder`, by the end of its name without suffix (`suffixes`, `.gz`).

    Raise DataError if a part has more than one file.
    """
    files: dict[str, Path] = {}
    stems = {p: name_before(p, suffixes) for p in sorted(Path(folder).glob("*"))}
    for part in parts:
        found = [p for p, stem in stems.items() if stem.endswith(_PART_ENDINGS[part])]
        if len(found) > 1:
            both = " and ".join(p.name for p in found[:2])
            raise DataError(f"{folder}: {both} both look like the {part} examples; keep one")
        if found:
            files[part] = found[0]
    return files


def name_before(path: Path, suffixes: Collection[str]) -> str:
    """Return a file's name in lower case without its suffix; "" if the suffix is not one of `suffixes`."""
    name = path.name.lower().removesuffix(".gz")
    return next((name.removesuffix(s) for s in suffixes if name.endswith(s)), "")


def check_one_line(users: pl.Series, path: Path) -> None:
    """Raise DataError if a user occurs twice."""
    twice = users.filter(users.is_duplicated())
    if len(twice):
        raise DataError(f"{path}: user {twice[0]!r} has more than one line; keep one line per user")


def user_attributes(users: pl.DataFrame, path: Path, called: str = "user_id") -> pl.DataFrame:
    """Return `user_id` (`called` in the file) and the attributes of users, all as text.

    Raise DataError if an id is missing, a user has two lines, or there are no attributes.
    """
    users = check_ids(users, "user_id", path, called)
    check_one_line(users["user_id"], path)
    attributes = [c for c in users.columns if c != "user_id"]
    if not attributes:
        raise DataError(f"{path}: the only column is that of the ids; expected user attributes, such as age")
    return users.select("user_id", *(as_text(users, c, path).str.strip_chars() for c in attributes))


def parse_lists(values: pl.Series, path: Path, called: str, at_least: int = 0) -> pl.Series:
    """Return lists of item ids as text; arguments, forms and errors are as for `read_lists`."""
    lists = [[*map(str, ids)] for ids in read_lists(values, path, called, at_least)]
    return pl.Series(values.name, lists, dtype=pl.List(pl.String))


def read_lists(values: pl.Series, path: Path, called: str, at_least: int = 0) -> list[list[str | int]]:
    """Return lists of item ids, of which numbers remain numbers; an empty field is an empty list.

    A value may be a list, a list as JSON, Python or numpy print it, or ids separated by spaces or commas. Raise
    DataError about the first value that is not a list of at least `at_least` ids. `called` is the column's name in
    the file, for messages.
    """
    lists = [_ids(value) for value in values.to_list()]
    bad = pl.Series([ids is None or len(ids) < at_least for ids in lists], dtype=pl.Boolean)
    refuse_bad(values, bad, path, called, "a list of item ids, such as [1, 2, 3] or 1 2 3")
    return [ids or [] for ids in lists]


def _ids(value: Any) -> list[str | int] | None:
    if value is None:
        return []
    if isinstance(value, str):
        value = _parsed(value.strip())
    if not isinstance(value, list):
        return None
    ids: list[str | int] = []
    for item in value:
        if isinstance(item, str) and item.strip():
            ids.append(item.strip())
        elif isinstance(item, int) and not isinstance(item, bool):
            ids.append(item)
        elif isinstance(item, float) and item.is_integer():
            ids.append(int(item))
        else:
            return None
    return ids


def _parsed(text: str) -> Any:
    """Parse a text as JSON, or as ids between brackets, commas and spaces; None if brackets are unbalanced."""
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    if text[:1] + text[-1:] not in ("[]", "()") and not {*"[]()"}.isdisjoint(text[:1] + text[-1:]):
        return None
    return ["".join(groups) for groups in _ID.findall(text)]


def titled(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return the items that have a visible title, with `clean_titles`.

    HTML entities such as `&amp;` are decoded, also in further columns. Raise DataError if the titles (`called` in the
    file) are not text.
    """
    items = items.with_columns(as_text(items, "title", path, called))
    texts = cs.string() - cs.by_name("item_id")
    items = items.with_columns(texts.map_elements(without_entities, return_dtype=pl.String))
    items = items.with_columns(clean_titles(pl.col("title")))
    return items.filter(pl.col("title").str.replace_all(INVISIBLE, "") != "")


def without_entities(text: str) -> str:
    """Decode HTML entities: numbers, and exact names. `unescape` would also decode the beginning of `&notes;`."""
    return re.sub(r"&(?:#\w+|(\w+));", _decoded, text)


def _decoded(entity: re.Match[str]) -> str:
    return html5.get(f"{entity[1]};", entity[0]) if entity[1] else unescape(entity[0])


def read_catalogue(path: Path, config: PrepareConfig) -> pl.DataFrame:
    """Return the catalogue of `clean_catalogue` from a table, or from a JSON object by item id.

    The values of the JSON object are titles, or objects with a title and further columns, as in LC-Rec's and LETTER's
    `*.item.json`.
    """
    columns = config.columns
    if name_before(path, [".json"]):
        table = check_ids(_catalogue_of_json(path, config.encoding, columns.title), "item_id", path)
    else:
        table = read_table(path, config.encoding)
        usual = [c for c in (columns.item, "item_id", "id") if c in table.columns]
        table = pick_catalogue(
            table, path, columns.catalogue_item or (usual[0] if usual else columns.item), columns.title
        )
    return clean_catalogue(table, path, columns.title)


def pick_catalogue(table: pl.DataFrame, path: Path, item: str, title: str) -> pl.DataFrame:
    """Return a table of items with our names for the columns `item` and `title`, and all others but users' ids."""
    names = {"item_id": item, "title": title}
    names |= {c: c for c in table.columns if c not in (*names, *names.values(), "user_id")}
    return pick_columns(table, names, path, options=CATALOGUE_FIELDS)


def _catalogue_of_json(path: Path, encoding: str, title: str) -> pl.DataFrame:
    """Return `item_id, title` and the text columns of a JSON object of id → title or id → object with a title."""
    try:
        values = _TITLES_JSON.validate_json(read_text(path, encoding))
    except ValidationError as e:
        problem = e.errors()[0]["msg"]
        raise DataError(
            f'{path}: expected one JSON object of id → title, such as {{"1": "Calculator"}}, or of id → object with '
            f'a title, such as {{"1": {{"title": "Calculator", "brand": "Casio"}}}} ({problem})'
        ) from None
    rows = [{title: value} if isinstance(value, str) else value for value in values.values()]
    for item, row in zip(values, rows, strict=True):
        if title not in row:
            raise DataError(
                f"{path}: item {item!r} has no field {title!r} (it has {', '.join(row) or 'no fields'}); name the "
                "field with --columns.title (`columns.title` in a recipe)"
            )
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in (title, "item_id")]
    table = {"item_id": [*values], "title": [_json_text(row[title]) for row in rows]}
    return pl.DataFrame(table | {name: [_json_text(row.get(name)) for row in rows] for name in names})


def _json_text(value: Any) -> str | None:
    """Return a JSON value as text: the elements of a list are joined by commas, and null and "" are null."""
    texts = [str(v).strip() for v in (value if isinstance(value, list) else [value]) if v is not None]
    return ", ".join(text for text in texts if text) or None


def clean_catalogue(items: pl.DataFrame, path: Path, called: str = "title") -> pl.DataFrame:
    """Return the items of `noted_catalogue` without its notes; arguments and errors are the same."""
    return noted_catalogue(items, path, called)[0]


def noted_catalogue(items: pl.DataFrame, path: Path, called: str = "title") -> tuple[pl.DataFrame, list[str]]:
    """Return `item_id, title, …` with `clean_titles` and each id once, and notes; items without a title are dropped.

    Of lines with the same id and title, the first is kept; a note counts those with other values that are lost. Raise
    DataError if the titles (`called` in the file) are not text, an id has two titles, or no item has a title.
    """
    if items.is_empty():
        raise DataError(f"{path}: the catalogue has no items; expected one item per line")
    items = titled(items, path, called)
    if items.is_empty():
        raise DataError(f"{path}: no item has a title (column {called}); name the right column, or add titles")
    comparable = items.select(~cs.nested()).columns
    different = items.select(comparable).n_unique()
    items = items.unique(subset=["item_id", "title"], keep="first", maintain_order=True)
    lost = different - len(items)
    twice = items.filter(pl.col("item_id").is_duplicated())
    if len(twice):
        item = twice["item_id"][0]
        titles = twice.filter(pl.col("item_id") == item)["title"].to_list()
        raise DataError(
            f"{path}: item {item!r} has {len(titles)} titles: {' / '.join(map(repr, titles[:3]))} "
            f"({twice['item_id'].n_unique()} such items); keep one line per item"
        )
    again = f"{lost:,} catalogue lines repeat the id and title of an earlier line with other values, and were dropped"
    return items, [again] if lost else []


def check_log(
    interactions: pl.DataFrame, item_ids: Collection[str], path: Path, missing: str = "error"
) -> tuple[pl.DataFrame, list[str]]:
    """Drop the interactions whose item has no title, so is not in `item_ids`; return the others, and a note.

    Raise DataError if the log is empty, if none of its items has a title, or, unless `missing` is `drop`, if one of
    them has none.
    """
    if interactions.is_empty():
        raise DataError(f"{path}: the log is empty; expected one line per interaction")
    ids = list(item_ids)
    known = interactions["item_id"].is_in(ids)
    unknown = interactions.filter(~known)["item_id"]
    spelling = other_spelling(unknown, pl.Series(ids, dtype=pl.String))
    hint = f": {spelling}" if spelling else ""
    if not known.any():
        where = f"among the catalogue's {len(ids):,} items with a title (such as {ids[0]!r})" if ids else ""
        raise DataError(
            f"{path}: none of the log's {interactions['item_id'].n_unique():,} items (such as "
            f"{interactions['item_id'][0]!r}) is {where or 'in the catalogue'}{hint}; use the same ids in both "
            "files, and check the column names"
        )
    if len(unknown) and missing == "error":
        items = unknown.unique(maintain_order=True).to_list()
        raise DataError(
            f"{path}: {len(items)} items of the log have no title in the catalogue (first: "
            f"{', '.join(map(repr, items[:3]))}; {len(unknown)} interactions){hint}. Add their titles, or "
            "drop these interactions with --missing-titles drop (`missing_titles: drop` in a recipe)"
        )
    notes = [f"{len(unknown)} interactions with items without a title were dropped{hint}"] if len(unknown) else []
    return (interactions.filter(known) if notes else interactions), notes


def merge_duplicates(
    interactions: pl.DataFrame, items: pl.DataFrame, how: DuplicateTitles
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Apply `resolve_duplicates`; return the log with merged ids replaced, the items, and notes."""
    items, renamed, notes = resolve_duplicates(items, how)
    columns = {"item_id": pl.col("item_id").replace(renamed)}
    if "impressions" in interactions.columns:
        columns["impressions"] = pl.col("impressions").list.eval(pl.element().replace(renamed))
    return interactions.with_columns(**columns) if renamed else interactions, items, notes
