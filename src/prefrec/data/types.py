"""The types that everything passes along: catalogue, ranking examples, prepared data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from prefrec.errors import DataError

FORMAT_VERSION = 1
"""Of the folder that `prefrec prepare` writes."""

INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp")
_IDS = pl.List(pl.String)
EXAMPLE_SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {
    "user_id": pl.String,
    "history": _IDS,
    "candidates": _IDS,
    "target": pl.String,
}


@dataclass(frozen=True, slots=True)
class RankingExample:
    """One question to a recommender: which of `candidates` does the user take next?

    All entries are item ids (strings). `history` is oldest first and holds only interactions before the
    target's; `target` stands exactly once in `candidates`.
    """

    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    target: str

    @property
    def target_index(self) -> int:
        """Position of the target in the candidates, from 0."""
        return self.candidates.index(self.target)


@dataclass(frozen=True, slots=True)
class Window:
    """A ranking example before its candidates are drawn: what came before, and what came next.

    `position` is the target's place in the user's sequence, from 0: with `user_id` it names the row.
    """

    user_id: str
    position: int
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Catalogue:
    """Items and their titles: a polars frame with `item_id: str`, `title: str` and any further columns."""

    frame: pl.DataFrame

    @cached_property
    def titles(self) -> dict[str, str]:
        """item_id → title, in the catalogue's order."""
        return dict(zip(self.frame["item_id"].to_list(), self.frame["title"].to_list(), strict=True))

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in the catalogue's order."""
        return self.frame["item_id"].to_list()

    def titles_of(self, item_ids: Iterable[str]) -> list[str]:
        """Titles of `item_ids`, in their order.

        Raises:
            DataError: an id is not in the catalogue.
        """
        try:
            return [self.titles[i] for i in item_ids]
        except KeyError as e:
            raise DataError(f"item {e.args[0]!r} is not in the catalogue of {len(self)} items") from None

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class PreparedData:
    """What `prefrec prepare` makes and everything else reads.

    Attributes:
        catalogue: all items that can be asked about.
        train, validation, test: ranking examples, candidates included.
        train_interactions: frame `user_id, item_id, timestamp[, rating][, impressions]` (str, str, Int64 seconds,
            Float64, list of str; sorted by user and time): what a recommender may learn from. Nothing of it lies in
            a validation or test target. Ratings, and items that were shown and not taken, are kept where the log has
            some.
        held_out_interactions: what the users of validation and test rows took, up to each user's last target, that
            is no training interaction; the same columns, in the same order. Nothing learns from it: by it
            `seen_items` knows what came before a target. None: not known, in data that an earlier prefrec prepared.
        protocol: source, split, candidates, seeds and counts, as plain JSON values.
        users: `user_id` and attributes such as age or gender, all text, each user once; None where none are known.
            They group users in studies and are no part of any prompt.
    """

    catalogue: Catalogue
    train: list[RankingExample]
    validation: list[RankingExample]
    test: list[RankingExample]
    train_interactions: pl.DataFrame
    protocol: dict[str, Any] = field(default_factory=dict)
    users: pl.DataFrame | None = None
    held_out_interactions: pl.DataFrame | None = None

    @property
    def domain(self) -> str:
        """`movies`, `music`, `books` or `generic`: which prompt templates fit."""
        return str(self.protocol.get("domain", "generic"))

    @property
    def opinions(self) -> pl.DataFrame:
        """The training interactions, without ratings that only say how often an item was taken."""
        counts = self.protocol.get("rating_counts", False)
        return self.train_interactions.drop("rating") if counts else self.train_interactions

    def split(self, name: str) -> list[RankingExample]:
        """The examples of `train`, `validation` or `test`."""
        if name not in ("train", "validation", "test"):
            raise DataError(f"unknown split {name!r}: expected train, validation or test")
        return list(getattr(self, name))

    def some(self, name: str, n: int | None) -> list[RankingExample]:
        """n rows of a split, spread over its users: one of each, then a second of each, and so on; None: all.

        Which of a user's rows comes first is drawn at random, always the same. Where users have a row each, these are
        the first n. They come in the order of the split.
        """
        rows = self.split(name)
        if n is None or n >= len(rows):
            return rows
        of_user: dict[str, list[int]] = {}
        for i, example in enumerate(rows):
            of_user.setdefault(example.user_id, []).append(i)
        rng = np.random.default_rng(0)
        turns = [(turn, i) for own in of_user.values() for turn, i in enumerate(rng.permutation(own).tolist())]
        return [rows[i] for i in sorted(i for _, i in sorted(turns)[:n])]


def examples_to_frame(examples: Sequence[RankingExample]) -> pl.DataFrame:
    """A frame with one row an example (columns user_id, history, candidates, target)."""
    rows = [(e.user_id, list(e.history), list(e.candidates), e.target) for e in examples]
    return pl.DataFrame(rows, schema=EXAMPLE_SCHEMA, orient="row")


def frame_to_examples(frame: pl.DataFrame) -> list[RankingExample]:
    """The inverse of `examples_to_frame`."""
    columns = (frame[c].to_list() for c in ("user_id", "history", "candidates", "target"))
    return [RankingExample(u, tuple(h), tuple(c), t) for u, h, c, t in zip(*columns, strict=True)]
