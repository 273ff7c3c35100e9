"""Types of prepared data: catalogue, ranking examples, windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import polars as pl

from prefrec.data.rows import RankingExample, take, user_codes
from prefrec.data.titles import UNSAFE
from prefrec.errors import DataError

FORMAT_VERSION = 3
"""Version of the folder format that `prefrec prepare` writes.

Version 1 holds the lists of training rows. Version 2 draws them without what their users take later.
"""
PARTS = ("train", "validation", "test")
COUNTED = 100_000_000
"""Seconds since 1970, a day in 1973. Times that are all smaller are counters and not dates."""
ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String}
LOG_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
_ID, _IDS = pl.String(), pl.List(pl.String)
EXAMPLE_SCHEMA = pl.Schema({"user_id": _ID, "history": _IDS, "candidates": _IDS, "target": _ID})


@dataclass(frozen=True, slots=True)
class Window:
    """A ranking example before its candidates are drawn.

    `position` is the target's index in the user's sequence. Together with `user_id` it identifies the row.
    """

    user_id: str
    position: int
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Catalogue:
    """The items and their titles: a polars frame with `item_id: str`, `title: str` and further columns.

    Titles are without `UNSAFE` characters.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        safe = self.frame.with_columns(pl.col("title").str.replace_all(UNSAFE, ""))
        object.__setattr__(self, "frame", safe)

    @cached_property
    def titles(self) -> dict[str, str]:
        """item_id → title, in the catalogue's order."""
        return dict(self.frame.select("item_id", "title").iter_rows())

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in the catalogue's order."""
        return self.frame["item_id"].to_list()

    def titles_of(self, item_ids: Iterable[str]) -> list[str]:
        """Return the titles of `item_ids`, in their order. Raise DataError if one is not in the catalogue."""
        try:
            return [self.titles[i] for i in item_ids]
        except KeyError as e:
            raise DataError(f"item {e.args[0]!r} is not in the catalogue of {len(self)} items") from None

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set, made by `prefrec prepare`.

    Attributes:
        train, validation, test: ranking examples, candidates included; `Rows` are made when they are read.
        train_interactions: frame `user_id, item_id, timestamp[, rating][, impressions]` (str, str, Int64 seconds,
            Float64, list of str; sorted by user and time). A recommender may learn from all of it; it contains no
            validation or test target. `impressions` are items that were shown but not clicked.
        held_out_interactions: other interactions of the users of validation and test rows, up to each user's last
            target, in the same form. Nothing learns from them; `seen_items` reads them. None in data of an earlier
            prefrec.
        protocol: source, split, candidates, seeds and counts, as plain JSON values.
        users: `user_id` and attributes such as age or gender, all text, each user once, or None. They group users in
            studies and are not part of any prompt.
    """

    catalogue: Catalogue
    train: Sequence[RankingExample]
    validation: Sequence[RankingExample]
    test: Sequence[RankingExample]
    train_interactions: pl.DataFrame
    protocol: dict[str, Any] = field(default_factory=dict)
    users: pl.DataFrame | None = None
    held_out_interactions: pl.DataFrame | None = None

    @property
    def domain(self) -> str:
        """`movies`, `music`, `books` or `generic`: which prompt templates fit."""
        return str(self.protocol.get("domain", "generic"))

    @property
    def logs(self) -> list[pl.DataFrame]:
        """The training interactions, and the held-out ones if there are any."""
        return [log for log in (self.train_interactions, self.held_out_interactions) if log is not None]

    @property
    def opinions(self) -> pl.DataFrame:
        """The training interactions, without ratings that are only play counts."""
        counts = self.protocol.get("rating_counts", False)
        return self.train_interactions.drop("rating") if counts else self.train_interactions

    @property
    def summary(self) -> list[str]:
        """Lines for the user: rows, split, what was left out, and the notes of the source."""
        counts, candidates = self.protocol["counts"], self.protocol["candidates"]
        parts = (f"{n:,} {part} rows of {counts['row_users'][part]:,} users" for part, n in counts["rows"].items())
        lines = [
            ", ".join(parts),
            f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions, "
            f"{counts['train_interactions']:,} of them to learn from",
            f"split {self.protocol['split']}, {candidates['size']} candidates ({candidates['kind']}), "
            f"seed {self.protocol['seed']}",
        ]
        facts, repeats = self.protocol["split_facts"], counts.get("repeats_dropped")
        short, full = (facts.get(f"users_{why}") for why in ("too_short", "without_room"))
        lines += [f"{short:,} users left out: too short a history"] if short else []
        few = f"fewer than {candidates['size'] - 1} items that they did not take (candidates.size)"
        lines += [f"{full:,} users left out: {few}"] if full else []
        lines += [f"{repeats:,} repeats left out"] if repeats else []
        if cut := counts.get("dropped_by_core"):
            who = " and ".join(f"{counts.get(f'{what}_dropped_by_core', 0):,} {what}" for what in ("users", "items"))
            lines.append(f"user_core and item_core left out {who}, with {cut:,} interactions")
        return [*lines, *self.protocol["notes"]]

    def split(self, name: str) -> Sequence[RankingExample]:
        """Return the examples of `train`, `validation` or `test`."""
        if name not in PARTS:
            raise DataError(f"unknown split {name!r}: expected train, validation or test")
        return cast(Sequence[RankingExample], getattr(self, name))

    def some(self, name: str, n: int | None) -> list[RankingExample]:
        """Return n rows of a split, spread over its users (one of each, then a second of each, …); None means all.

        The choice among a user's rows is always the same. The rows keep the order of the split. Validation and test
        rows have the time of their question if the data have dates.
        """
        rows = self.split(name)
        if n is None or n >= len(rows):
            return self._with_times(name, rows)
        codes = user_codes(rows)
        by_user = np.argsort(codes, kind="stable")
        own = np.split(by_user, np.flatnonzero(np.diff(codes[by_user])) + 1)
        rng = np.random.default_rng(0)
        turns = np.empty(len(rows), dtype=np.int64)
        for places in sorted(own, key=lambda places: places[0]):  # in the order of the users' first rows
            turns[rng.permutation(places)] = np.arange(len(places))
        return self._with_times(name, take(rows, np.sort(np.argsort(turns, kind="stable")[:n])))

    @cached_property
    def has_dates(self) -> bool:
        """True if the times of the log are dates, and not only an order."""
        return has_dates(self.train_interactions)

    def known_interactions(self, split: str) -> pl.DataFrame:
        """Return the interactions that are known before the rows of a split.

        These are the training interactions and, before test rows, those of validation users up to their last
        validation target.
        """
        log, later = self.train_interactions, self.held_out_interactions
        if split != "test" or later is None:
            return log
        pairs = [(e.user_id, e.target, True) for e in self.validation]
        schema = {"user_id": pl.String, "item_id": pl.String, "is_target": pl.Boolean}
        targets = pl.DataFrame(pairs, schema, orient="row").unique()
        marked = later.join(targets, on=["user_id", "item_id"], how="left", maintain_order="left")
        # Held-out interactions are in the order of users and time.
        still_to_come = pl.col("is_target").fill_null(False).reverse().cum_max().reverse().over("user_id")
        found = marked.filter(still_to_come).drop("is_target")
        return pl.concat([log, found], how="diagonal").sort("user_id", "timestamp", maintain_order=True)

    def _with_times(self, name: str, rows: Sequence[RankingExample]) -> list[RankingExample]:
        if name == "train" or not self.has_dates or self.held_out_interactions is None:
            return list(rows)
        times = (self._held_out_times.get((e.user_id, e.target)) for e in rows)
        # A row that has its time stays the same object, by which callers find it again.
        return [e if e.time == time else replace(e, time=time) for e, time in zip(rows, times, strict=True)]

    @cached_property
    def _held_out_times(self) -> dict[tuple[str, str], int]:
        """(user, item) → time of the held-out interactions."""
        log = cast(pl.DataFrame, self.held_out_interactions)
        return {(user, item): time for user, item, time in log.select("user_id", "item_id", "timestamp").iter_rows()}


def has_dates(log: pl.DataFrame) -> bool:
    """Return True if the times of a log are dates, and not only an order."""
    return len(log) > 0 and cast(int, log["timestamp"].min()) >= COUNTED


def examples_to_frame(examples: Sequence[RankingExample]) -> pl.DataFrame:
    """Return a frame with one row per example (columns user_id, history, candidates, target)."""
    rows = [(e.user_id, list(e.history), list(e.candidates), e.target) for e in examples]
    return pl.DataFrame(rows, schema=EXAMPLE_SCHEMA, orient="row")


def frame_to_examples(frame: pl.DataFrame) -> list[RankingExample]:
    """Return the examples of a frame made by `examples_to_frame`."""
    columns = (frame[c].to_list() for c in EXAMPLE_SCHEMA)
    return [RankingExample(u, tuple(h), tuple(c), t) for u, h, c, t in zip(*columns, strict=True)]
