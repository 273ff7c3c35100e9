"""Ranking examples as columns of integers: each is made when it is read, so that a hundred million fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

Row = TypeVar("Row")
_BLOCK = 4096
# Rows that are kept once all have been read: small data are read again and again.
_KEPT = 200_000


@dataclass(frozen=True, slots=True)
class RankingExample:
    """A ranking question: which of `candidates` does the user take next?

    All entries are item ids. `history` is oldest first and has only items taken before the target. `target` is in
    `candidates` exactly once. `time` is that of the question, in seconds since 1970, where the data have dates.
    """

    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    target: str
    time: int | None = field(default=None, compare=False)

    @property
    def target_index(self) -> int:
        """Position of the target in the candidates, from 0."""
        return self.candidates.index(self.target)


Lists = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]], list[list[int]]]
"""The candidates of rows [B], given the rows, their sequences, their targets' places in these, and their targets."""


@dataclass(frozen=True)
class StoredLists:
    """Lists that lie one after another: list n is `items[offsets[n]:offsets[n + 1]]`."""

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __call__(self, rows: NDArray[np.int64], *_: Any) -> list[list[int]]:
        """Return the lists of these rows."""
        return [self.items[a:b].tolist() for a, b in zip(self.offsets[rows], self.offsets[rows + 1], strict=True)]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[RankingExample]):
    """Ranking examples of sequences of items, made when they are read. They equal a list of the same examples.

    Attributes:
        ids: items of the catalogue; all other columns hold places in it.
        users: the user of each sequence [S].
        items: all sequences, one after another: sequence s is `items[offsets[s]:offsets[s + 1]]`.
        offsets: [S + 1].
        places: of the rows' targets in `items` [n].
        history_length: most items of a history, which are those before the target.
        lists: gives the candidates.
        by_piece: histories of one of the `pieces` begin at one item, and have at least half of `history_length` items
            unless that is the first of the sequence.
    """

    ids: Sequence[str]
    users: pl.Series
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    places: NDArray[np.integer[Any]]
    history_length: int
    lists: Lists
    by_piece: bool = False
    _all: list[RankingExample] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> RankingExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[RankingExample]: ...
    def __getitem__(self, index: int | slice) -> RankingExample | list[RankingExample]:
        at = range(len(self))[index]
        return (
            self.take(np.arange(at.start, at.stop, at.step))
            if isinstance(at, range)
            else self.take(np.array([at]))[0]
        )

    def __iter__(self) -> Iterator[RankingExample]:
        if len(self) <= _KEPT:
            if not self._all:
                self._all.extend(self[:])
            yield from self._all
        else:
            for start in range(0, len(self), _BLOCK):
                yield from self[start : start + _BLOCK]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: NDArray[np.int64]) -> list[RankingExample]:
        """Return the examples of these rows [B], in their order."""
        if self._all:
            return [self._all[row] for row in rows.tolist()]
        examples: list[RankingExample] = []
        for start in range(0, len(rows), _BLOCK):
            examples += self._read(rows[start : start + _BLOCK])
        return examples

    def _read(self, rows: NDArray[np.int64]) -> list[RankingExample]:
        places, owners = self.places[rows].astype(np.int64), self.owners(rows)
        begins, targets = self.offsets[owners], self.items[places]
        lists = self.lists(rows, owners, places - begins, targets)
        starts = np.maximum(begins, places - self.history_length)
        if self.by_piece:
            starts = begins + np.maximum(0, self._steps(places - begins) - 1) * self._half
        named = self.ids.__getitem__
        columns = (self.users[owners].to_list(), starts.tolist(), places.tolist(), lists, targets.tolist())
        return [
            RankingExample(
                user, tuple(map(named, self.items[start:place].tolist())), tuple(map(named, listed)), named(target)
            )
            for user, start, place, listed, target in zip(*columns, strict=True)
        ]

    @property
    def _half(self) -> int:
        return max(1, self.history_length // 2)

    def _steps(self, depths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the piece, from 0 in each sequence, of targets with so many items before them [B]."""
        return np.maximum(0, depths - 1) // self._half

    def pieces(self) -> NDArray[np.int64]:
        """Return a number for the piece of its sequence that each row [n] is in."""
        owners = self.owners()
        steps = self._steps(self.places - self.offsets[owners])
        return owners * (1 + int(steps.max(initial=0))) + steps

    def owners(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.int64]:
        """Return the sequence of each of these rows [B]."""
        return np.searchsorted(self.offsets, self.places[rows], side="right").astype(np.int64) - 1


def take(rows: Sequence[Row], at: NDArray[np.int64]) -> list[Row]:
    """Return the rows at these places [B], in their order."""
    return cast(list[Row], rows.take(at)) if isinstance(rows, Rows) else [rows[i] for i in at.tolist()]


def user_codes(rows: Sequence[RankingExample]) -> NDArray[np.int64]:
    """Return a number for the user of each row [n], the same for the same user."""
    if isinstance(rows, Rows):
        names = rows.users.rank("dense").to_numpy().astype(np.int64)
        return np.asarray(names[rows.owners()])
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(e.user_id, len(codes)) for e in rows], dtype=np.int64)


def stored_rows(frame: pl.DataFrame, ids: Sequence[str]) -> Rows:
    """Return the rows of a frame of `EXAMPLE_SCHEMA`, whose items are all in `ids`."""
    items = pl.Enum(ids)

    def lists(column: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        codes = frame[column].explode(empty_as_null=False).cast(items).to_physical().to_numpy().astype(np.int32)
        return codes, np.concatenate([[0], frame[column].list.len().cast(pl.Int64).cum_sum().to_numpy()])

    frame = frame.with_columns(pl.concat_list("history", "target").alias("sequence"))
    sequences, offsets = lists("sequence")
    longest = int(np.diff(offsets).max(initial=0))
    listed = StoredLists(*lists("candidates"))
    return Rows(ids, frame["user_id"], sequences, offsets, offsets[1:] - 1, longest, listed)
