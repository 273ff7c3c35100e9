"""Write prepared data to a folder and read it back. An incomplete folder is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefrec.console import track
from prefrec.data.candidates import SampledCandidates, item_weights, keys_without, pair_keys
from prefrec.data.parquet import UNREADABLE, read_parquet
from prefrec.data.rows import LazyExamples, RankingExample, stored_rows
from prefrec.data.types import (
    EXAMPLE_SCHEMA,
    FORMAT_VERSION,
    ITEM_SCHEMA,
    LOG_SCHEMA,
    SPLITS,
    Catalogue,
    PreparedData,
    examples_to_frame,
)
from prefrec.errors import DataError, first_words
from prefrec.files import Writer, check_end, read_whole, write_together

PROTOCOL = "protocol.json"
_TABLES = ("items", "interactions", *SPLITS)
# Tables that may be absent. What users touched besides the log is in two: `touched` has those pairs that are no
# candidates of training examples, `besides` has all and their times.
_OPTIONAL = ("users", "held_out", "touched", "unmeasured", "besides")
# The optional tables that models depend on. Nothing is learnt from users, nor from the rest of the held-out log.
_DECISIVE = ("touched", "unmeasured", "besides")
# Examples, or users, that are held in memory as text or keys at a time.
_BLOCK = 10_000
# Required columns of each table.
_SCHEMAS: dict[str, Mapping[str, Any]] = {
    "items": ITEM_SCHEMA,
    "interactions": LOG_SCHEMA,
    "held_out": LOG_SCHEMA,
    "users": {"user_id": pl.String},
    "touched": {"user_id": pl.String, "item_id": pl.String},
    "unmeasured": LOG_SCHEMA,
    "besides": LOG_SCHEMA,
    "drawn": {"interaction": pl.UInt32},
    **dict.fromkeys(SPLITS, EXAMPLE_SCHEMA),
}
# Table → column whose values are unique.
_ONCE = {"items": "item_id", "users": "user_id"}


def write_prepared(data: PreparedData, folder: Path) -> None:
    """Write prepared data to a folder, atomically: if a write fails, older files stay unchanged.

    The folder is created if missing. `protocol.json` is written last, so a folder without it is unfinished.

    Raises:
        DataError: `folder` is a file.
        StorageError: the disk is full, or writing is not permitted.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to write the prepared data to")
    folder.mkdir(parents=True, exist_ok=True)
    touched = _touched(data.train, len(data.train_interactions))
    optional = {"users": data.users, "held_out": data.held_out_interactions, "touched": touched}
    optional |= {"unmeasured": data.unmeasured, "besides": data.touched}
    tables = {"items": data.catalogue.frame, "interactions": data.train_interactions}
    tables |= {name: frame for name, frame in optional.items() if frame is not None}
    writers: dict[Path, Writer] = {folder / f"{n}.parquet": partial(_write_table, t) for n, t in tables.items()}
    for part in SPLITS:
        # An item and its user do not say which of several interactions a target is.
        times = data.keeps_repeats and part != "train"
        writers[folder / f"{part}.parquet"] = partial(_write_rows, data.split(part), times)
    # Reading the folder samples the candidates again.
    if isinstance(data.train, LazyExamples) and touched is not None:
        targets = pl.DataFrame({"interaction": data.train.target_positions.astype(np.uint32)})
        writers[folder / "train.parquet"] = targets.write_parquet
    text = json.dumps(data.protocol | {"format_version": FORMAT_VERSION}, indent=2, ensure_ascii=False) + "\n"
    writers[folder / PROTOCOL] = lambda path: path.write_text(text, encoding="utf-8")
    stale = [folder / f"{name}.parquet" for name in _OPTIONAL if name not in tables]
    write_together(writers, [folder / PROTOCOL, *stale])


def _write_table(table: pl.DataFrame, path: Path) -> None:
    ids = cs.by_name("user_id", "item_id", require_all=False)
    table.lazy().with_columns(ids.cast(pl.String)).sink_parquet(path)


def _write_rows(rows: Sequence[RankingExample], times: bool, path: Path) -> None:
    schema = examples_to_frame(rows[:1], times=times).to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for at in track(range(0, max(len(rows), 1), _BLOCK), "writing examples"):
            writer.write_table(examples_to_frame(rows[at : at + _BLOCK], times=times).to_arrow())


def _touched(rows: Sequence[RankingExample], n_learnt: int) -> pl.DataFrame | None:
    """Return `user_id, item_id` of what users touched beyond the `n_learnt` training interactions.

    Return None if the candidates of the training examples cannot be sampled again from the folder alone.
    """
    if not isinstance(rows, LazyExamples) or len(rows.items) != n_learnt:
        return None
    if not isinstance(rows.candidate_sets, SampledCandidates):
        return None
    n_items, touched = len(rows.ids), rows.candidate_sets.touched
    more = []
    for a, b in pairwise([*range(0, len(rows.users), _BLOCK), len(rows.users)]):
        offsets = rows.offsets[a : b + 1]
        owners = np.repeat(np.arange(a, b), np.diff(offsets))
        learnt = pair_keys((owners, rows.items[offsets[0] : offsets[-1]]), n_items)
        block = slice(*np.searchsorted(touched, [a * n_items, b * n_items]))
        more.append(keys_without(touched[block], learnt))
    users, items = np.divmod(np.concatenate(more), n_items)
    has_rows = np.diff(rows.offsets)[users] > 0
    users, items = users[has_rows], items[has_rows]
    return pl.DataFrame({"user_id": rows.users[users], "item_id": pl.Series(rows.ids, dtype=pl.String)[items]})


def prepared_digest(folder: Path) -> str:
    """Return the SHA-256 of everything in prepared data that models depend on: examples, items and domain.

    Copying or moving the folder does not change it, nor do tables of users and held-out interactions, of which models
    learn what the examples and `unmeasured` name.
    """
    digest = hashlib.sha256()
    for name in (*_TABLES, *_DECISIVE):
        path = folder / f"{name}.parquet"
        if name in _TABLES or path.exists():
            check_end(path)
            with path.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    protocol = json.loads(read_whole(folder / PROTOCOL))
    digest.update(f"{protocol.get('format_version')} {protocol.get('domain')}".encode())
    return digest.hexdigest()


def read_prepared(folder: Path) -> PreparedData:
    """Read prepared data from a folder written by `write_prepared` or `prefrec prepare`.

    Raise DataError if the folder is missing, unfinished, damaged or of another format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; create it with `prefrec prepare {folder}`")
    try:
        protocol = json.loads(read_whole(folder / PROTOCOL))
    except FileNotFoundError:
        started = any((folder / f"{name}.parquet").exists() for name in _TABLES)
        why = "is unfinished" if started else "is not prepared data"
        raise DataError(f"{folder} {why} ({PROTOCOL} is missing); run `prefrec prepare {folder}` again") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{folder / PROTOCOL}: not valid JSON ({e}); run `prefrec prepare {folder}` again") from None
    written = protocol.get("format_version") if isinstance(protocol, dict) else None
    if written != FORMAT_VERSION:
        raise DataError(
            f"{folder}: format version {written}, but this prefrec reads version {FORMAT_VERSION}; "
            "prepare the data again"
        )
    paths = {name: folder / f"{name}.parquet" for name in (*_TABLES, *_OPTIONAL)}
    tables = {n: _read_table(path) for n, path in paths.items() if n not in _OPTIONAL or path.exists()}
    for name, frame in tables.items():
        drawn = name == "train" and "touched" in tables
        _check_table(frame, "drawn" if drawn else name, paths[name], tables["items"])
    if "touched" in tables and len(tables["train"]):
        _refuse(tables["train"]["interaction"] >= len(tables["interactions"]), paths["train"], "no such interaction")
    catalogue, log = Catalogue(tables["items"]), tables["interactions"]
    parts = {part: stored_rows(tables[part], catalogue.ids) for part in SPLITS if "history" in tables[part].columns}
    if "train" not in parts:
        try:
            parts["train"] = _sampled(tables, catalogue.ids, protocol["config"], folder)
        except (KeyError, TypeError):
            lacks = f"{folder / PROTOCOL}: the settings of the training examples are missing"
            raise DataError(f"{lacks}; prepare the data again") from None
    more = [tables.get(name) for name in ("users", "held_out", "unmeasured", "besides")]
    return PreparedData(catalogue, parts["train"], parts["validation"], parts["test"], log, protocol, *more)


def _sampled(
    tables: Mapping[str, pl.DataFrame], ids: Sequence[str], config: Mapping[str, Any], folder: Path
) -> LazyExamples:
    """Return the training examples, with candidates sampled as in `prepare`."""
    runs = tables["interactions"]["user_id"].rle().struct
    users = runs.field("value")
    offsets = np.concatenate([[0], runs.field("len").cast(pl.Int64).cum_sum().to_numpy()])
    kinds = {"user_id": pl.Enum(users), "item_id": pl.Enum(ids)}

    def codes(name: str) -> list[NDArray[Any]]:
        coded = [tables[name][column].cast(kind, strict=False) for column, kind in kinds.items()]
        for column in coded:
            _refuse(column.is_null(), folder / f"{name}.parquet", f"{column.name} is in no other table")
        return [column.to_physical().to_numpy() for column in coded]

    learnt, touched = codes("interactions"), codes("touched")
    if config.get("repeats") == "keep":  # then a negative may be an item that the user has
        keys = pair_keys(touched, len(ids))
    else:
        keys = pair_keys(map(np.concatenate, zip(learnt, touched, strict=True)), len(ids))
    items = learnt[1].astype(np.int32)
    positions = tables["train"]["interaction"].to_numpy()
    weights = item_weights(config["candidates"]["kind"], items, len(ids))
    sampler = SampledCandidates(users, weights, keys, "train", config["seed"], config["candidates"]["size"])
    return LazyExamples(ids, users, items, offsets, positions, config["history_length"], sampler)


def read_items(path: Path) -> Catalogue:
    """Read a table of items with `item_id` and `title`; raise DataError if it is missing or damaged."""
    items = _read_table(path)
    _check_table(items, "items", path, items)
    return Catalogue(items)


def _read_table(path: Path) -> pl.DataFrame:
    try:
        return read_parquet(path)
    except UNREADABLE as e:
        fault = f"damaged ({first_words(e)})" if path.exists() else "missing"
        raise DataError(f"{path}: {fault}; prepare the data again") from None


def _check_table(frame: pl.DataFrame, name: str, path: Path, items: pl.DataFrame) -> None:
    """Raise DataError if `write_prepared` could not have written this table."""
    for column, kind in _SCHEMAS[name].items():
        if frame.schema.get(column) != kind:
            raise DataError(f"{path}: no column {column!r} of type {kind}; prepare the data again")
        if (name, column) != ("besides", "timestamp"):
            _refuse(frame[column].is_null(), path, f"{column} is empty")
    if name in _ONCE:
        _refuse(frame[_ONCE[name]].is_duplicated(), path, f"another row has the same {_ONCE[name]}")
    if name in SPLITS:
        has_target = frame.select(pl.col("candidates").list.contains(pl.col("target"))).to_series()
        _refuse(~has_target, path, "the target is not among the candidates")
        for column in ("history", "candidates"):
            named = frame[column].explode().drop_nulls().unique()
            for item in named.filter(~named.is_in(items["item_id"].to_list()))[:1]:
                unknown = frame.select(pl.col(column).list.contains(item)).to_series()
                _refuse(unknown, path, f"item {item!r} is not in items.parquet")


def _refuse(bad: pl.Series, path: Path, why: str) -> None:
    if bad.any():
        raise DataError(f"{path}, row {bad.arg_true()[0]}: {why}; prepare the data again")
