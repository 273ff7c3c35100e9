"""Read and write the JSON of the published S-DPO data: titles, not ids.

Each row has `historyList` (titles joined by `::`), `itemList` (the candidates) and `trueSelection`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from prefrec.data.rows import RankingExample
from prefrec.data.titles import safe_title
from prefrec.data.types import FORMAT_VERSION, LOG_SCHEMA, SPLITS, Catalogue, PreparedData
from prefrec.errors import ConfigError, DataError
from prefrec.files import write_text
from prefrec.intake.config import PrepareConfig
from prefrec.intake.cuts import sample_rows
from prefrec.intake.prepare import count_rows
from prefrec.intake.readers import read_json_rows
from prefrec.intake.sources.base import SourceKind, find_split_files
from prefrec_lab.datasets.lastfm import NAMES, SEQUENCES, SPLIT_FILES, read_names
from prefrec_lab.datasets.titles import is_blank

JOINT = "::"
# Settings that decide how rows are made, which these files have finished.
_OF_ROWS = ("candidates", "history_length", "min_history", "min_rating")
_SHARED = 3
_SCHEMA = {"historyList": pl.String, "itemList": pl.List(pl.String), "trueSelection": pl.String}
_Titles = tuple[list[str], list[str], str]
"""History, candidates and target of a row."""


def to_published(examples: Sequence[RankingExample], catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return one JSON object per example, in the published form.

    Raise DataError if two items share a title, a used title contains `::`, or an item is unknown.
    """
    _ids_by_title(catalogue)
    rows = []
    for example in examples:
        history = catalogue.titles_of(example.history)
        candidates = catalogue.titles_of(example.candidates)
        bad = next((t for t in (*history, *candidates) if JOINT in t), None)
        if bad is not None:
            raise DataError(
                f"title {bad!r} contains {JOINT!r}, which separates titles in the published JSON: rename it in the "
                "catalogue"
            )
        target = candidates[example.target_index]
        rows.append({"historyList": JOINT.join(history), "itemList": candidates, "trueSelection": target})
    return rows


def write_published(examples: Sequence[RankingExample], catalogue: Catalogue, path: Path) -> None:
    """Write the result of `to_published` to a file, whole or not at all. Errors are those of `to_published`."""
    write_text(path, json.dumps(to_published(examples, catalogue), indent=4))


def write_published_splits(data: PreparedData, folder: Path) -> None:
    """Write `train.json`, `validation.json` and `test.json`. Errors are those of `to_published`."""
    for part in SPLITS:
        write_published(data.split(part), data.catalogue, folder / f"{part}.json")


def read_published(path: Path, catalogue: Catalogue | None = None) -> tuple[Catalogue, list[RankingExample]]:
    """Return catalogue and examples of a published file: a JSON array, or one object per line.

    The published form does not name users. Rows that continue each other are a session, which takes the place of the
    user (`session-0`, `session-1`, …). Without a `catalogue` of titles and ids, the titles in the file are numbered
    from 0.

    Raise DataError if the file is missing or not of this form, a title is unknown or belongs to two items.
    """
    rows = _read_rows(path)
    catalogue = catalogue or _catalogue_of(rows)
    return catalogue, _examples(rows, catalogue, path, "session")


def read_published_folder(folder: Path) -> tuple[Catalogue, dict[str, list[RankingExample]]]:
    """Return one catalogue, and the examples of the parts `train`, `validation` and `test` in `folder`.

    A part's file is the one JSON file whose name (without `.json`) ends in `train`, `val`, `valid`,
    `validation` or `test`, such as `lastfm-val.json`. Parts without a file are empty.

    Raise DataError if no part has a file, a part has two, or a file is not of the published form.
    """
    files = find_split_files(folder, [".json"])
    if not files:
        raise DataError(f"{folder}: no published JSON; expected files such as train.json, val.json or test.json")
    rows = {part: _read_rows(path) for part, path in files.items()}
    catalogue = _catalogue_of([row for part_rows in rows.values() for row in part_rows])
    examples = {
        part: _examples(part_rows, catalogue, files[part], f"{part}-session") for part, part_rows in rows.items()
    }
    return catalogue, {part: examples.get(part, []) for part in SPLITS}


def write_sequences(folder: Path, out: Path, names: Path | None = None) -> None:
    """Write the sessions of published JSON files to `sequences.tsv` and `id2name.txt`, for source `lastfm-published`.

    JSON has titles only, and the authors draw a list by its target's id: give their `id2name.txt` as `names` to get
    the same lists again. Without it items are numbered in the order in which their titles appear.

    Raise DataError if the files are not of the published form, or `names` lacks a title or has it twice.
    """
    catalogue, examples = read_published_folder(folder)
    if names is not None:
        catalogue = Catalogue(read_names(names))
        parts = find_split_files(folder, [".json"]).items()
        examples = {part: read_published(path, catalogue)[1] for part, path in parts}
    sessions = [
        (split, items) for split, part in SPLIT_FILES.items() for items in _taken(examples.get(part, [])).values()
    ]
    lines = [f"{n}\t{split}\t{' '.join(items)}\n" for n, (split, items) in enumerate(sessions)]
    write_text(out / SEQUENCES, "session\tsplit\titems\n" + "".join(lines))
    write_text(out / NAMES, "".join(f"{item}{JOINT}{title}\n" for item, title in catalogue.titles.items()))


def published_json(config: PrepareConfig) -> PreparedData:
    """Return the data of published S-DPO JSON files unchanged, with sessions in the place of users.

    Raises:
        DataError: there are no files, or they are not of the published form.
        ConfigError: a setting asks for other rows.
    """
    plain = PrepareConfig(source=config.source)
    for field in _OF_ROWS:
        if getattr(config, field) != getattr(plain, field):
            raise ConfigError(f"{field}: source {config.source} takes the rows as they are; leave it out")
    catalogue, examples = read_published_folder(config.required("path"))
    every = [e for rows in examples.values() for e in rows]
    taken = _taken(examples["train"]).items()
    log = [(user, item, n) for user, items in taken for n, item in enumerate(items)]
    learn = pl.DataFrame(log, schema=LOG_SCHEMA, orient="row")
    kept = {part: sample_rows(config, part, [e.user_id for e in rows]) for part, rows in examples.items()}
    examples = {part: [examples[part][i] for i in rows] for part, rows in kept.items()}
    protocol = {
        "format_version": FORMAT_VERSION,
        "prefrec": version("prefrec"),
        "source": config.source,
        "domain": config.domain or "generic",
        "split": "given",
        "candidates": {"kind": "given", "size": max(len(e.candidates) for e in every)},
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "counts": count_rows(learn, catalogue, examples),
        "split_facts": {},
        "notes": ["lists come from the files; users are unknown: rows that continue each other count as one"],
    }
    train, validation, test = (examples[part] for part in SPLITS)
    return PreparedData(catalogue, train, validation, test, learn, protocol, held_out_interactions=learn.clear())


def _read_rows(path: Path) -> list[_Titles]:
    frame = read_json_rows(path, _SCHEMA)
    if frame.is_empty():
        raise DataError(f"{path}: no rows")
    return [_parse_row(f"{path}, row {number}", *row) for number, row in enumerate(frame.iter_rows())]


def _parse_row(where: str, joined: str | None, items: list[str | None] | None, target: str | None) -> _Titles:
    if joined is None or items is None or target is None or None in items:
        raise DataError(f"{where}: expected historyList (text), itemList (list of titles) and trueSelection (text)")
    joined, target = safe_title(joined), safe_title(target)
    history = joined.split(JOINT) if joined else []
    titles = [safe_title(title or "") for title in items]
    if any(map(is_blank, (*history, *titles))):
        raise DataError(f"{where}: an empty title in historyList or itemList; leave it out")
    if titles.count(target) != 1:
        raise DataError(f"{where}: trueSelection {target!r} is {titles.count(target)}× in itemList, expected once")
    return history, titles, target


def _catalogue_of(rows: Sequence[_Titles]) -> Catalogue:
    titles = list(dict.fromkeys(t for history, items, _ in rows for t in (*history, *items)))
    return Catalogue(pl.DataFrame({"item_id": [str(i) for i in range(len(titles))], "title": titles}))


def _examples(rows: Sequence[_Titles], catalogue: Catalogue, path: Path, user: str) -> list[RankingExample]:
    ids = _ids_by_title(catalogue)
    chains = _sessions([(tuple(history), target) for history, _, target in rows])
    session = {row: n for n, chain in enumerate(chains) for row in chain}
    examples = []
    for number, (history, items, target) in enumerate(rows):
        unknown = next((t for t in (*history, *items) if t not in ids), None)
        if unknown is not None:
            raise DataError(
                f"{path}, row {number}: title {unknown!r} is not in the catalogue of {len(catalogue)} items"
            )
        history_ids = tuple(ids[t] for t in history)
        candidates = tuple(ids[t] for t in items)
        examples.append(RankingExample(f"{user}-{session[number]}", history_ids, candidates, ids[target]))
    return examples


def _taken(examples: Sequence[RankingExample]) -> dict[str, list[str]]:
    """Return the items of each session, in order."""
    taken = {}
    for chain in _sessions([(e.history, e.target) for e in examples]):
        first, *rest = (examples[row] for row in chain)
        taken[first.user_id] = [*first.history, first.target, *(e.target for e in rest)]
    return taken


def _sessions(rows: Sequence[tuple[tuple[str, ...], str]]) -> list[list[int]]:
    """Return the sessions as row numbers in order. The history of a row is that of the row before it and its target.

    The oldest title may have left a history of full length. Histories of fewer than `_SHARED` titles prove nothing.
    """
    after: dict[tuple[str, ...], list[int]] = {}
    longest = max((len(history) for history, _ in rows), default=0)
    for number, (history, target) in enumerate(rows):
        for left in range(1 + (len(history) == longest)):
            after.setdefault((*history[left:], target), []).append(number)
    chains = {number: [number] for number in range(len(rows))}
    free = set(chains)  # rows that nothing follows yet
    for number, (history, _) in enumerate(rows):
        before = [r for r in after.get(history, ()) if r in free and chains[r][0] != number]
        if before and len(history) >= _SHARED:
            nearest = min(before, key=lambda r: (r > number, abs(r - number)))
            free.discard(nearest)
            chains[nearest] += chains[number]
            chains |= dict.fromkeys(chains[number], chains[nearest])
    return list({id(chain): chain for chain in chains.values()}.values())


def _ids_by_title(catalogue: Catalogue) -> dict[str, str]:
    ids: dict[str, str] = {}
    for item, title in catalogue.titles.items():
        if title in ids:
            raise DataError(
                f"items {ids[title]!r} and {item!r} are both called {title!r}, but published JSON lists items by "
                "title; prepare the data with --duplicate-titles merge or number (`duplicate_titles` in a recipe)"
            )
        ids[title] = item
    return ids


JSON = SourceKind(published_json, given=True)
