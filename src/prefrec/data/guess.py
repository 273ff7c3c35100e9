"""Guess settings from a log and a catalogue: which column is which, and the protocol that fits the log's shape."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import polars.selectors as cs

from prefrec.data import readers
from prefrec.data.config import ColumnNames, PrepareConfig
from prefrec.data.readers import FILE_ORDER
from prefrec.data.sources.files import files
from prefrec.errors import DataError

# Words in the names of columns, the best sign first.
_WORDS = {
    "user": "user customer client member buyer shopper visitor reader reviewer account person uid session",
    "item": "item product sku article asin movie film book track song artist game isbn stock business recipe",
    "timestamp": "timestamp datetime time date at on when ts",
    "rating": "rating stars score",
    "title": "title name label description",
    "id": "id sku asin isbn code key number nr no",
}
_OF_ITEMS = ("catalogue_item", "title")
# Notes of the reader → the setting without which it refuses the files.
_NEEDED = {"without a title": ("missing_titles", "drop"), "were numbered": ("duplicate_titles", "number")}
_MOST_ROWS = {"train": 100_000, "validation": 1000, "test": 2000}
_PLAUSIBLE = (631_152_000, 2_208_988_800)
"""1990 and 2040 in seconds since 1970."""


class Setting(NamedTuple):
    """A dotted field of `PrepareConfig`, its value, and how it was found: `sure: …`, `check: …` or a fact."""

    field: str
    value: Any
    why: str


def guess_settings(log: Path, items: Path, given: ColumnNames, encoding: str, longest: int) -> list[Setting]:
    """Return settings with which `prepare` reads a log and a catalogue, with histories of at most `longest` items.

    `given` columns are kept. Raise DataError if a file cannot be read or no column looks like users, items or titles.
    """
    columns = _columns((log, items), given, encoding)
    names = {field: setting.value for field, setting in columns.items()}
    found = {"source": "files", "interactions": log, "items": items, "encoding": encoding, "columns": names}
    source = files(PrepareConfig.model_validate(found | dict(_NEEDED.values())))
    taken = source.interactions.sort("timestamp").unique(["user_id", "item_id"], keep="first", maintain_order=True)
    lengths = taken.group_by("user_id").len()["len"].to_numpy()
    shortest = 3 if (lengths >= 5).mean() >= 0.5 else 1
    # With uniform negatives, a split by time has lists that popularity and the order of ids rank well.
    split = "leave-last-out" if (lengths >= shortest + 2).mean() >= 0.1 else "time"
    early, late = (rows["item_id"] for rows in (taken.head(len(taken) * 8 // 10), taken.tail(len(taken) // 10)))
    new = 1 - late.is_in(early.unique().to_list()).sum() / max(len(late), 1)
    size = max(2, min(20, len(source.catalogue) - int(lengths.max())))
    longest = max(1, min(longest, int(lengths.max()) - 1))
    return [
        *(setting._replace(field=f"columns.{field}") for field, setting in columns.items()),
        *(Setting(*setting, note) for mark, setting in _NEEDED.items() for note in source.notes if mark in note),
        Setting("split", split, f"or time, which asks more about new items ({new:.0%} of the last tenth)"),
        Setting("candidates", {"kind": "auto", "size": size}, "the target among items that the user has not seen"),
        Setting("history_length", longest, f"users have {lengths.mean():.1f} items"),
        Setting("min_history", shortest, "items before a target"),
        *(Setting(f"max_{part}_rows", most, "of a large log, at random") for part, most in _MOST_ROWS.items()),
    ]


def guess_item_text(items: Path, encoding: str, taken: Collection[Any]) -> str | None:
    """Return a text for items by at most two columns, not `taken`, whose values items share, such as brands."""
    table = readers.read_table(items, encoding).select(~(cs.nested() | cs.binary()))
    free = [c for c in table.columns if c.isidentifier() and c not in taken]
    shared = [f"{{{{ {c} }}}}" for c in free if 1 < table[c].n_unique() < len(table) / 2][:2]
    return f"{{{{ title }}}} ({', '.join(shared)})" if shared else None


def _columns(paths: tuple[Path, Path], given: ColumnNames, encoding: str) -> dict[str, Setting]:
    """Return field → column, for a log and a catalogue."""
    texts = [_texts(readers.read_table(path, encoding)) for path in paths]
    found = {f: Setting(f, c, "as named") for f, c in given.model_dump(include=given.model_fields_set).items()}

    def free(field: str) -> pl.DataFrame:
        at = field in _OF_ITEMS
        taken = {s.value for f, s in found.items() if (f in _OF_ITEMS) == at and f != field}
        return texts[at].select(c for c in texts[at].columns if c not in taken)

    if not {"item", "catalogue_item"} <= found.keys():
        found = _ids(free("item"), free("catalogue_item"), paths, given) | found
    for field in ("timestamp", "rating", "user", "title"):
        found[field] = found.get(field) or _best(field, free(field), paths[field in _OF_ITEMS])
    return {field: found[field] for field in ColumnNames.model_fields if field in found}


def _ids(log: pl.DataFrame, items: pl.DataFrame, paths: tuple[Path, Path], given: ColumnNames) -> dict[str, Setting]:
    """Return the columns that share ids, by their names and the share of common values."""
    best = (0.0, 0.0, "", "")
    for column in log.columns:
        used = {*log[column].drop_nulls().unique()}
        for listed in items.columns:
            ids = {*(values := items[listed].drop_nulls())}
            overlap, coverage = (len(used & ids) / max(len(either), 1) for either in (used, ids))
            # Whole numbers may be ids of anything. Those of items cover more of the catalogue.
            score = overlap + coverage / 4 + _sign("item", column) / 2 + _sign("id", listed) / 4
            score -= (_sign("user", column) + _sign("title", column) + _sign("title", listed)) / 2
            score += 9 * ((column == given.item) + (listed == given.catalogue_item))
            if overlap >= 0.5 and len(ids) >= 0.95 * len(values):
                best = max(best, (score, overlap, column, listed))
    _, overlap, column, listed = best
    if not column:
        raise DataError(
            f"{paths[0]}: none of the columns {log.columns} holds the ids of one of {items.columns} in {paths[1]}. "
            "Name both with --columns.item and --columns.catalogue-item"
        )
    sure = "sure" if _sign("item", column) and overlap > 0.9 else "check"
    item = Setting("item", column, f"{sure}: {overlap:.0%} of its values are in {paths[1].name}")
    return {"item": item, "catalogue_item": Setting("catalogue_item", listed, "the same ids")}


def _best(field: str, frame: pl.DataFrame, path: Path) -> Setting:
    """Return the column that fits best; raise DataError if none does and the field is needed."""
    fits = [(*fit, column) for column in frame.columns if (fit := _fit(field, column, frame[column].drop_nulls()))]
    if fits:
        _, why, column = max(fits)
        return Setting(field, column, why)
    if field == "rating":
        return Setting(field, None, "no column is called so")
    if field == "timestamp" and not any(_sign(field, column) for column in frame.columns):
        return Setting(field, FILE_ORDER, "check: no column has times; are the lines in temporal order?")
    seen = f"none of the other columns {frame.columns} looks like a {field}"
    raise DataError(f"{path}: {seen}. Name it with --columns.{field}, or write the file in another form")


def _fit(field: str, column: str, values: pl.Series) -> tuple[float, str] | None:
    """Return a score and what speaks for the column; None if it cannot be this field."""
    sign, count, different = _sign(field, column), len(values), values.n_unique()
    sure = "sure" if sign else "check"
    if field == "timestamp":
        with suppress(DataError):
            times = readers.parse_timestamps(values.head(1000).to_frame(), column, Path())[0][column]
            if count and times.is_between(*_PLAUSIBLE).all():
                return 2 + sign, f"{sure}: dates"
            if sign:
                return sign, "check: numbers, not dates"
    elif field == "rating" and sign and not values.cast(pl.Float64, strict=False).has_nulls():
        return sign, f"{sure}: numbers"
    elif field == "user" and 1 < different < count:
        score = 2 * sign + _sign("id", column) / 10 + different / count
        return score, f"{sure}: {different:,} users, {count / different:.1f} lines each"
    elif field == "title" and different > count / 2:
        is_text = values.str.contains(r"\p{L}") & ~values.str.contains("://")
        if is_text.sum() > 0.9 * count:
            return 2 * sign + different / count, f"{sure}: text, such as {values[0]!r:.60}"
    return None


def _sign(role: str, column: str) -> float:
    """Return how well a name fits a role: 0, or from 0.5 to 1 for the best word."""
    parts = [p.lower() for p in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", column)]
    words = _WORDS[role].split()
    fits = [n for n, w in enumerate(words) if any(p == w or (len(w) > 3 and p.startswith(w)) for p in parts)]
    return 1 - fits[0] / (2 * len(words)) if fits else 0.0


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns as text, with null for empty fields; without those of lists, records and bytes."""
    texts = frame.select(~(cs.nested() | cs.binary())).cast(pl.String)
    texts = texts.select(pl.all().str.strip_chars().str.strip_suffix(".0"))  # of files made by pandas
    return texts.select(pl.when(pl.all() != "").then(pl.all()))
