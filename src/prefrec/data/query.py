"""What a ranker is asked: which of some candidates comes next after a history. Many queries may share these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import overload

import numpy as np
from numpy.typing import NDArray

_KEPT = 64
"""Indexes whose codes `Candidates` keep: more than a server has rankers, and few enough for a lasting process."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a ranker: which of `candidates` comes next after `history`? It has no target.

    Attributes:
        history: item ids, oldest first.
        candidates: item ids, each once.
        time: time of the question in seconds since 1970. Default: now, just after the end of the log.
        history_times: times of the first items of the history, in seconds since 1970. Items without one are newer.
            Empty if the data have no dates or no repeats, because only features of repeats read them.
        user_id: the user's id, if the question is about a user of the log. Default: it is about a history alone.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    time: int | None = field(default=None, compare=False)
    history_times: tuple[int, ...] = field(default=(), compare=False)
    user_id: str | None = None

    def among(self, candidates: tuple[str, ...]) -> Query:
        """Return the query about other candidates, without a target if this one has one."""
        return Query(self.history, candidates, self.time, self.history_times, self.user_id)


class Candidates(Sequence[str]):
    """Items that many queries share, such as all of a catalogue; each ranker looks up their codes once.

    Attributes:
        ids: the items.
    """

    def __init__(self, items: Iterable[str]) -> None:
        self.ids = tuple(items)
        self._codes: list[tuple[Mapping[str, int], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        return self.ids[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @cached_property
    def places(self) -> dict[str, int]:
        """Item → its place in `ids`."""
        return {item: n for n, item in enumerate(self.ids)}

    def codes(self, index: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the code [C] of each item, len(index) for one that is not in `index`."""
        for known, codes in self._codes:
            if known is index:
                return codes
        codes = item_codes(self.ids, index)
        self._codes = [*self._codes, (index, codes)][-_KEPT:]
        return codes


class Queries(Sequence[Query]):
    """B queries about the same candidates.

    A ranker may read them one by one, as any other sequence of queries: each has all candidates. One that reads
    `candidates` looks up each item once, and not once for each query.

    Args:
        queries: B queries whose candidates are the ids of `candidates`, the same tuple.
        candidates: what they share.
    """

    def __init__(self, queries: Iterable[Query], candidates: Candidates) -> None:
        self.candidates = candidates
        self._queries = tuple(queries)
        if any(query.candidates is not candidates.ids for query in self._queries):
            raise ValueError("queries that share their candidates must all have the same tuple")

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, rows: int) -> Query: ...
    @overload
    def __getitem__(self, rows: slice) -> Queries: ...
    def __getitem__(self, rows: int | slice) -> Query | Queries:
        return Queries(self._queries[rows], self.candidates) if isinstance(rows, slice) else self._queries[rows]

    def __iter__(self) -> Iterator[Query]:
        return iter(self._queries)


def item_codes(items: Sequence[str], index: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the code [L] of each item, len(index) for one that is not in `index`."""
    # `map` takes half the time of a loop: a blend learns from thousands of rows with thousands of items each.
    return np.fromiter(map(index.get, items, repeat(len(index))), np.int64, len(items))
