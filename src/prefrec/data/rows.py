"""Ranking examples stored as integer columns and built on access, so that a hundred million fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.query import Query

Row = TypeVar("Row")
_BLOCK = 4096
# Up to this number, examples are cached when they are first iterated over: small data are read repeatedly.
_KEPT = 200_000


@dataclass(frozen=True, slots=True, init=False)
class RankingExample(Query):
    """A query whose answer is known: with which of `candidates` did the user interact next?

    Attributes:
        user_id: the user's id.
        history: item ids from before the target, oldest first.
        candidates: item ids; the target occurs exactly once.
        target: item id of the next interaction.
        time: time of the target in seconds since 1970, if the data have dates.
        history_times: as of `Query`.
    """

    user_id: str = field(kw_only=True)
    target: str = field(kw_only=True)

    def __init__(
        self,
        user_id: str,
        history: tuple[str, ...],
        candidates: tuple[str, ...],
        target: str,
        time: int | None = None,
        history_times: tuple[int, ...] = (),
    ) -> None:
        # By hand, because a user and a target come before a time that may be left out.
        Query.__init__(self, history, candidates, time, history_times, user_id)
        object.__setattr__(self, "target", target)

    @property
    def target_first(self) -> tuple[str, ...]:
        """The target, then the other candidates in order, as preference training has them."""
        return self.target, *(item for item in self.candidates if item != self.target)

    @property
    def target_index(self) -> int:
        """Position of the target in the candidates, from 0."""
        return self.candidates.index(self.target)


CandidateSets = Callable[
    [NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]], list[list[int]]
]
"""Function of examples [B], their sequences, the positions of their targets therein and the targets → candidates."""


@dataclass(frozen=True, eq=False)
class StoredCandidates:
    """Concatenated candidate sets: that of example n is `items[offsets[n]:offsets[n + 1]]`."""

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __call__(self, rows: NDArray[np.int64], *_: Any) -> list[list[int]]:
        """Return the candidates of examples [B]."""
        return [self.items[a:b].tolist() for a, b in zip(self.offsets[rows], self.offsets[rows + 1], strict=True)]


@dataclass(frozen=True, eq=False)
class LazyExamples(Sequence[RankingExample]):
    """Ranking examples built on access from item sequences; equal to a list of the same examples.

    Attributes:
        ids: item ids of the catalogue. Items are elsewhere indices into it.
        users: user id of each sequence [S].
        items: all sequences concatenated: sequence s is `items[offsets[s]:offsets[s + 1]]`.
        offsets: [S + 1].
        target_positions: position of each example's target in `items` [n].
        history_length: longest history, in items.
        candidate_sets: returns the candidates.
        times: time of each example's target [n], or None if examples have none.
        ends: position in `items` at which each example's history ends [n]. Default: at its target.
        by_piece: let all histories of a piece (`pieces`) begin at the same item. They have at least half of
            `history_length` items, except at the beginning of a sequence.
    """

    ids: Sequence[str]
    users: pl.Series
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    target_positions: NDArray[np.integer[Any]]
    history_length: int
    candidate_sets: CandidateSets
    times: NDArray[np.int64] | None = None
    ends: NDArray[np.integer[Any]] | None = None
    by_piece: bool = False
    _all: list[RankingExample] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.target_positions)

    @overload
    def __getitem__(self, index: int) -> RankingExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[RankingExample]: ...
    def __getitem__(self, index: int | slice) -> RankingExample | list[RankingExample]:
        at = range(len(self))[index]
        if isinstance(at, int):
            return self.take(np.array([at]))[0]
        return self.take(np.arange(at.start, at.stop, at.step))

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
        """Return the examples with these indices [B], in this order."""
        if self._all:
            return [self._all[row] for row in rows.tolist()]
        return [e for start in range(0, len(rows), _BLOCK) for e in self._read(rows[start : start + _BLOCK])]

    def _read(self, rows: NDArray[np.int64]) -> list[RankingExample]:
        places, owners = self.target_positions[rows].astype(np.int64), self.owners(rows)
        begins, targets = self.offsets[owners], self.items[places]
        candidates = self.candidate_sets(rows, owners, places - begins, targets)
        ends = places if self.ends is None else self.ends[rows].astype(np.int64)
        starts = np.maximum(begins, ends - self.history_length)
        if self.by_piece:
            starts = begins + np.maximum(0, self._steps(ends - begins) - 1) * self._half
        named = self.ids.__getitem__
        times = [None] * len(rows) if self.times is None else self.times[rows].tolist()
        columns = (self.users[owners].to_list(), starts.tolist(), ends.tolist(), candidates, targets.tolist(), times)
        return [
            RankingExample(
                user,
                tuple(map(named, self.items[start:end].tolist())),
                tuple(map(named, listed)),
                named(target),
                time,
            )
            for user, start, end, listed, target, time in zip(*columns, strict=True)
        ]

    @property
    def _half(self) -> int:
        return max(1, self.history_length // 2)

    def _steps(self, depths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the piece, counted from 0 in each sequence, of targets with `depths` [B] items before them."""
        return np.maximum(0, depths - 1) // self._half

    def pieces(self) -> NDArray[np.int64]:
        """Return a number that identifies the piece of a sequence that each example [n] is in."""
        owners = self.owners()
        steps = self._steps(self.target_positions - self.offsets[owners])
        return owners * (1 + int(steps.max(initial=0))) + steps

    def owners(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.int64]:
        """Return the index of the sequence of each of these examples [B]."""
        return np.searchsorted(self.offsets, self.target_positions[rows], side="right").astype(np.int64) - 1


def take(rows: Sequence[Row], at: NDArray[np.int64]) -> list[Row]:
    """Return the entries with these indices [B], in this order."""
    return cast(list[Row], rows.take(at)) if isinstance(rows, LazyExamples) else [rows[i] for i in at.tolist()]


def user_codes(rows: Sequence[RankingExample]) -> NDArray[np.int64]:
    """Return a number that identifies the user of each example [n]."""
    if isinstance(rows, LazyExamples):
        return rows.users.rank("dense").to_numpy().astype(np.int64)[rows.owners()]
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(e.user_id, len(codes)) for e in rows], dtype=np.int64)


def spread(rows: Sequence[RankingExample], n: int | None) -> list[int]:
    """Return the indices of n examples, spread over users: one per user, then a second one per user, and so on.

    The choice is deterministic. Indices are in order; n None means all examples.
    """
    if n is None or n >= len(rows):
        return list(range(len(rows)))
    codes = user_codes(rows)
    by_user = np.argsort(codes, kind="stable")
    groups = np.split(by_user, np.flatnonzero(np.diff(codes[by_user])) + 1)
    rng = np.random.default_rng(0)
    turns = np.empty(len(rows), dtype=np.int64)
    for group in sorted(groups, key=lambda group: group[0]):  # in the order of the users' first examples
        turns[rng.permutation(group)] = np.arange(len(group))
    return [int(row) for row in np.sort(np.argsort(turns, kind="stable")[:n])]


def latest_rows(rows: Sequence[RankingExample], most: int | None) -> Sequence[RankingExample]:
    """Return the last `most` examples of each user (None means all), in the order of `rows`."""
    if most is None:
        return rows
    users = user_codes(rows)
    by_user = np.argsort(users, kind="stable")
    ends = np.searchsorted(users[by_user], users[by_user], side="right")
    latest = by_user[ends - np.arange(len(rows)) <= most]
    return take(rows, np.sort(latest))


def stored_rows(frame: pl.DataFrame, ids: Sequence[str]) -> LazyExamples:
    """Return the examples of a frame of `EXAMPLE_SCHEMA`, perhaps with `time`, whose items are all in `ids`."""
    items = pl.Enum(ids)

    def flat(column: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        codes = frame[column].explode(empty_as_null=False).cast(items).to_physical().to_numpy().astype(np.int32)
        return codes, np.concatenate([[0], frame[column].list.len().cast(pl.Int64).cum_sum().to_numpy()])

    frame = frame.with_columns(pl.concat_list("history", "target").alias("sequence"))
    sequences, offsets = flat("sequence")
    longest = int(np.diff(offsets).max(initial=0))
    stored = StoredCandidates(*flat("candidates"))
    times = frame["time"].to_numpy() if "time" in frame.columns else None
    return LazyExamples(ids, frame["user_id"], sequences, offsets, offsets[1:] - 1, longest, stored, times)
