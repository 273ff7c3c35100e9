"""Guess settings from a log and a catalogue: the role of each column, and a protocol that suits the log."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl

from prefrec.data.parquet import Shrink
from prefrec.data.splits import first_only
from prefrec.data.types import IS_TARGET, has_dates
from prefrec.errors import DataError
from prefrec.intake import readers
from prefrec.intake.config import ColumnNames, PrepareConfig
from prefrec.intake.sources import source_kind
from prefrec.intake.sources.base import GivenSplit, Source
from prefrec.intake.sources.files import files, files_of
from prefrec.intake.sources.windows import holds_lists, windows
from prefrec.proposal.columns import as_texts, guess_columns, holds_dates
from prefrec.proposal.kinds import kind_files, kinds_of
from prefrec.proposal.setting import Setting
from prefrec.proposal.words import name_fit, topic

# Part of a reader's note → the setting without which the reader would reject the files.
_NEEDED = {
    "had no user": ("missing_users", "drop"),
    "had no time": ("missing_times", "drop"),
    "without a title": ("missing_titles", "drop"),
    "were numbered": ("duplicate_titles", "number"),
}
_MOST_LOST = 0.5
"""Share of interactions with items without a title, up to which `init` proposes to drop them."""
_MOST_NEW = 0.5
"""Share of catalogue items without interactions, up to which `init` takes them for new and proposes to keep them.

If most are without, the catalogue is rather an archive, or the log is a small part of what was sold.
"""
_MOST_CANDIDATES = 20
# Quantile of items per user that limits the number of candidates. Users with more items may have no examples.
_WITH_ROOM = 0.99
_MOMENT = ("user_id", "item_id", "timestamp")
_REPEATED = 0.1
"""Share of interactions that repeat an earlier one of their user, from which repeats are kept."""
_HABIT = 100
"""Longest history if repeats are kept: a shorter one does not show a user's habits."""
_FEW = 10
"""Distinct numbers up to which a column counts as a category."""
_MOST_ATTRIBUTES = 6


_CANDIDATES = "the target and unseen items"
_LIMITS = [
    Setting(f"max_{part}_rows", most, "a random sample if there are more")
    for part, most in (("train", 100_000), ("validation", 1000), ("test", 2000))
]


class Guess(NamedTuple):
    """Guessed settings of a log and a catalogue.

    Attributes:
        source: name of the source, and its files.
        settings: settings with which `prepare` reads the files.
        item_text: template of an item's text, with up to two columns of attributes such as brands; or None.
        room: number of items other than a target and the longest history in a prompt.
        interactions: number of interactions in the log.
        attributes: column of the catalogue → how a blend compares it (`prefrec.rankers.attributes`).
    """

    source: dict[str, Any]
    settings: list[Setting]
    item_text: str | None
    room: int
    interactions: int
    attributes: dict[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """Dotted field → value."""
        return {setting.field: setting.value for setting in self.settings}


def guess(
    log: Path, items: Path, given: ColumnNames, encoding: str, longest: int, *, may_hold_lists: bool = True
) -> Guess:
    """Return settings for a log (a file, or a folder or pattern of files) and a catalogue. Each file is read once.

    `given` names the columns that are known; histories have at most `longest` items. With `may_hold_lists`, a log
    with lists of items is read as ready-made examples. Raise DataError if a file cannot be read, or no column looks
    like users, items or titles.
    """
    read = _reader()
    paths = files_of(log, items)
    tables = [read(file, encoding) for file in paths]
    if may_hold_lists and any(holds_lists(table, given) for table in tables):
        return _guess_windows(log, items, given, encoding, longest)
    # A column may have another type in each part, so parts are joined as texts.
    parts = [
        as_texts(table).with_columns(pl.lit(readers.file_name(path).partition(".")[0]).alias(readers.FILE_NAME))
        for path, table in zip(paths, tables, strict=True)
    ]
    whole = pl.concat(parts, how="diagonal")
    catalogue = read(items, encoding)
    if not any(map(len, tables)):
        raise DataError(f"{log}: the log is empty; expected one line per interaction")
    if catalogue.is_empty():
        raise DataError(f"{items}: the catalogue has no items; expected one item per line")
    texts = [whole.drop(readers.FILE_NAME), as_texts(catalogue)]
    columns = guess_columns(texts, (log, items), given)
    if "kind" not in columns and (of_files := kind_files(paths)):
        columns["kind"] = of_files
    names = {field: setting.value for field, setting in columns.items()}
    base: dict[str, Any] = {"source": "files", "interactions": log, "items": items}
    settings = [setting._replace(field=f"columns.{field}") for field, setting in columns.items()]
    kinds = kinds_of(whole, columns) if "kind" in columns else []
    settings += kinds
    more = {setting.field: setting.value for setting in kinds} | {"encoding": encoding, "columns": names}
    source = files(_lenient(base | more), read)
    why = f"from the name of column {names['item']}"
    settings += [Setting("domain", about, why)] if (about := topic(names["item"])) else []
    protocol, room = _protocol(source, longest)
    text = _item_text(texts[1], [*names.values()])
    attributes = _attributes(source.catalogue.frame)
    settings += [*_needed(source), *_unseen(source)]
    return Guess(base, [*settings, *protocol], text, room, len(source.interactions), attributes)


def _guess_windows(log: Path, items: Path, given: ColumnNames, encoding: str, longest: int) -> Guess:
    """Return settings for the files of ready-made examples in the folder `log`, or in that of the file `log`."""
    columns = given.model_dump(include=given.model_fields_set)
    base: dict[str, Any] = {"source": "windows", "path": log if log.is_dir() else log.parent, "items": items}
    how = {"columns": columns, "encoding": encoding, "history_length": longest, "min_history": 1}
    source = windows(_lenient(base | how))
    rows = cast(GivenSplit, source.given).windows
    counts = ", ".join(f"{len(of_split):,} {part}" for part, of_split in rows.items())
    lengths = np.array([len(row.history) for of_split in rows.values() for row in of_split])
    shown, n_items = int(lengths.max()), source.interactions["item_id"].n_unique()
    size = max(2, min(_MOST_CANDIDATES, n_items - shown))
    settings = [Setting(f"columns.{field}", name, "as named") for field, name in columns.items()]
    settings += _needed(source)
    settings += [
        Setting("split", "given", f"that of the files: {counts} examples; or time: merge and cut by time"),
        Setting("candidates", {"kind": "auto", "size": size}, _CANDIDATES),
        Setting("history_length", shown, f"at most; examples have {lengths.mean():.1f} items on average"),
        Setting("min_history", 3 if (lengths >= 3).mean() >= 0.5 else 1, "items before a target"),
        *_LIMITS,
    ]
    frame = source.catalogue.frame
    text, room = _item_text(frame, ["item_id", "title"]), n_items - 1 - shown
    return Guess(base, settings, text, room, len(source.interactions), _attributes(frame))


def _lenient(values: dict[str, Any]) -> PrepareConfig:
    """Return a configuration with the settings of `_NEEDED`, with which the reader rejects as little as possible."""
    taken = source_kind(values["source"]).takes
    settings = {field: value for field, value in _NEEDED.values() if field in taken}
    return PrepareConfig.model_validate(values | settings)


def _needed(source: Source) -> list[Setting]:
    """Return the settings without which the reader would reject the files, judging by its notes."""
    settings = []
    for mark, (field, value) in _NEEDED.items():
        for note in source.notes:
            if mark in note:
                is_untitled = field == "missing_titles"
                settings.append(_untitled(note, source) if is_untitled else Setting(field, value, note))
    return settings


def _untitled(note: str, source: Source) -> Setting:
    """Return the setting about interactions with items without a title, which a note of the reader counts.

    They are not left out if they are most of the log, or if the catalogue seems to have their items in another
    spelling: then it is more likely that the two files do not fit together.
    """
    counted, _, spelling = note.partition(": ")
    lost = int(counted.split()[0])
    share = lost / (lost + len(source.interactions))
    if share <= _MOST_LOST and not spelling:
        return Setting("missing_titles", "drop", note)
    seen = spelling or "are ids the same in both files?"
    why = f"check: {share:.0%} of the interactions are with items without a title; {seen} (drop: leave these out)"
    return Setting("missing_titles", "error", why)


def _unseen(source: Source) -> list[Setting]:
    """Return the setting about catalogue items without interactions, which are new, or are no longer sold."""
    seen = source.interactions["item_id"].unique().to_list()
    unseen, items = int((~source.catalogue.frame["item_id"].is_in(seen)).sum()), len(source.catalogue)
    if not unseen:
        return []
    counted = f"{unseen:,} of {items:,} items have no interactions yet"
    if unseen / items <= _MOST_NEW:
        return [Setting("unseen_items", True, f"{counted}; false: never recommend them")]
    return [Setting("unseen_items", False, f"check: {counted}; true: recommend them, too")]


def _reader() -> Callable[..., pl.DataFrame]:
    """Return a function like `readers.read_table` that reads each file once."""
    kept = cache(readers.read_table)

    def read(path: Path, encoding: str, shrink: Shrink = lambda table: table) -> pl.DataFrame:
        return shrink(kept(path, encoding).lazy()).collect()

    return read


def _protocol(source: Source, longest: int) -> tuple[list[Setting], int]:
    """Return the settings of examples and candidates, and the room for negatives (`Guess`)."""
    whole = source.interactions.sort("timestamp").unique([*_MOMENT], keep="first", maintain_order=True)
    log = first_only(whole).sort("timestamp", maintain_order=True)
    repeated = 1 - len(log) / len(whole)
    keeps = repeated >= _REPEATED
    counted = whole if keeps else log
    lengths = counted.group_by("user_id").len()["len"].to_numpy()
    n_items = log["item_id"].n_unique()
    shortest = 3 if (lengths >= 5).mean() >= 0.5 else 1
    long_enough, needed = (lengths >= shortest + 2).mean(), f"{shortest + 2} items"
    if IS_TARGET in log.columns:
        asked = log.group_by("user_id").agg(pl.len(), pl.col(IS_TARGET).sum())
        long_enough = ((asked["len"] >= shortest + 2) & (asked[IS_TARGET] >= 2)).mean()
        needed += ", two of them targets,"
    early, last = (rows["item_id"] for rows in (log.head(len(log) * 8 // 10), log.tail(len(log) // 10)))
    new = 1 - last.is_in(early.unique().to_list()).sum() / max(len(last), 1)
    late = f"{new:.0%} of the last tenth of the log are new items"
    # With a split by time and uniform negatives, popularity and the order of ids rank candidates well.
    split = Setting("split", "leave-last-out", f"or time: {late}" if has_dates(log) else "each user's next item")
    if long_enough < 0.1:
        why = f"only {long_enough:.0%} of users have the {needed} that leave-last-out needs"
        split = Setting("split", "time" if has_dates(log) else "user", why)
    usual = 0 if keeps else int(np.quantile(lengths, _WITH_ROOM, method="lower"))
    size = max(2, min(_MOST_CANDIDATES, n_items - usual))
    few = f" (there are {n_items} items, and a user may have {usual} of them)" if size < _MOST_CANDIDATES else ""
    shown = max(1, min(_HABIT if keeps else longest, int(lengths.max()) - 1))
    again = f"{repeated:.0%} of the log repeats earlier interactions; drop would recommend only new items"
    others = "the target and other items" if keeps else f"{_CANDIDATES}{few}"
    settings = [
        split,
        *([Setting("repeats", "keep", again)] if keeps else []),
        Setting("candidates", {"kind": "auto", "size": size}, others),
        Setting("history_length", shown, f"at most; users have {lengths.mean():.1f} items on average"),
        Setting("min_history", shortest, "items before a target"),
        *_LIMITS,
    ]
    return settings, n_items - 1 - (0 if keeps else shown)


def _item_text(items: pl.DataFrame, used: list[Any]) -> str | None:
    """Return a template of an item's text with up to two columns, not `used`, whose values items share; or None."""
    free = [c for c in items.columns if c.isidentifier() and c not in used]
    shared = [f"{{{{ {c} }}}}" for c in free if 1 < items[c].n_unique() < len(items) / 2][:2]
    return f"{{{{ title }}}} ({', '.join(shared)})" if shared else None


def _attributes(items: pl.DataFrame) -> dict[str, str]:
    """Return the first columns of a catalogue that look like attributes → `near` for numbers, `same` for others.

    Items must share values, unless these are numbers. Numbers that name something, such as a `category_id`, and a few
    different ones count as categories. Dates are no attributes: that two items have the same one means little.
    """
    found = dict[str, str]()
    for column in items.columns:
        kind, values = items.schema[column], items[column].drop_nulls()
        if column in ("item_id", "title") or kind.is_nested() or not column.isprintable():
            continue
        if kind.is_temporal() or holds_dates(column, values.cast(pl.String, strict=False)):
            continue
        different = values.n_unique()
        if kind.is_numeric() and different > _FEW and not name_fit("id", column):
            found[column] = "near"
        elif 1 < different < len(items) / 2:
            found[column] = "same"
    return dict([*found.items()][:_MOST_ATTRIBUTES])
