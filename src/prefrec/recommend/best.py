"""The best items of many questions by the scores of any ranker, in blocks of arrays without an object per item."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Candidates, Queries, Query
from prefrec.rankers.base import ListRanker, Ranker, checked_scores
from prefrec.rankers.baselines import ItemFeatureRanker, PopularityRanker
from prefrec.rankers.matrices import blocks
from prefrec.recommend.popular import Popular

Scores = NDArray[np.float32]
_ARRAYS = 8
"""Arrays of a block's size that are in memory at the same time: a blend has one for each part."""


class HistoryQuestion(Protocol):
    """The history of one question, and the items that this question alone excludes."""

    @property
    def history(self) -> Sequence[str]:
        """Item ids, oldest first."""
        ...

    @property
    def times(self) -> Sequence[int]:
        """Times of the first items of the history (`Query.history_times`)."""
        ...

    @property
    def seen(self) -> Collection[str]:
        """Ids of items that are not recommended, although the rules allow them."""
        ...


@dataclass(frozen=True, eq=False)
class Best:
    """The best items of a block of Q questions: N rows, question after question, best first.

    Attributes:
        questions: [N] number of the question in its block.
        items: [N] place in the candidates that the questions share.
        scores: [N] scores.
        by_popularity: [Q] whether the question was answered by popularity, because it has no history.
    """

    questions: NDArray[np.int64]
    items: NDArray[np.int64]
    scores: Scores
    by_popularity: NDArray[np.bool_]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Scores, bool]]:
        """Yield the items, the scores and `by_popularity` of each question."""
        ends = np.searchsorted(self.questions, np.arange(1, len(self.by_popularity)))
        parts = zip(np.split(self.items, ends), np.split(self.scores, ends), self.by_popularity.tolist(), strict=True)
        yield from parts if len(self.by_popularity) else ()


def best_of(
    ranker: Ranker,
    questions: Sequence[HistoryQuestion],
    items: Candidates,
    k: int,
    *,
    popular: Popular | None = None,
    groups: NDArray[np.int64] | None = None,
    at_most: int = 0,
    factors: NDArray[np.float64] | None = None,
) -> Iterator[Best]:
    """Yield the best items of the questions, in blocks.

    An empty history is answered by popularity if it is known, unless the ranker ignores histories.

    Args:
        ranker: scores the items.
        questions: the questions.
        items: [I] ids of the items that the rules allow; those with equal scores are answered in this order.
        k: number of items for each question; fewer if fewer are left.
        popular: popularity of the items.
        groups: [I] group of each item, -1 for an item without one. Default: no groups.
        at_most: maximum number of items for each question and group.
        factors: [I] boost of each item (`boosted`). Default: none.

    Raises:
        ModelError: a score is NaN.
    """
    if not questions:
        return
    of_list = isinstance(ranker, ListRanker)
    ignores_histories = isinstance(ranker, PopularityRanker | ItemFeatureRanker)
    counts = None if popular is None or ignores_histories else popular.counts_of(items)
    # The processes of a job share the rows of a call to rankers of lists, which read titles.
    parts = [slice(0, len(questions))] if of_list else blocks(len(questions), _ARRAYS * len(items))
    for rows in parts:
        block = questions[rows]
        by_popularity = np.array([counts is not None and not a.history for a in block], dtype=np.bool_)
        scores = _scores(ranker, block, items, by_popularity, counts, of_list)
        found = top(scores, k, factors) if groups is None else _top_by_group(scores, k, groups, at_most, factors)
        numbers, places, values = found
        yield Best(numbers, places, values, by_popularity)


def _scores(
    ranker: Ranker,
    block: Sequence[HistoryQuestion],
    items: Candidates,
    by_popularity: NDArray[np.bool_],
    counts: Scores | None,
    of_list: bool,
) -> Scores:
    """Return scores [Q, I] of all items, -inf for seen ones and for those that the ranker cannot score."""
    is_open = np.ones((len(block), len(items)), dtype=np.bool_)
    is_open[_places([a.seen for a in block], items)] = False
    scores = np.full(is_open.shape, -np.inf, dtype=np.float32)
    if counts is not None:
        scores[by_popularity] = counts
    by_ranker = np.flatnonzero(~by_popularity & is_open.any(axis=1))
    # Queries have no user: an answer depends on its history alone, whatever else is asked.
    lists = [_listed(items, is_open[row]) if of_list else items.ids for row in by_ranker]
    queries: Sequence[Query] = [
        Query(tuple(block[row].history), listed, history_times=tuple(block[row].times))
        for row, listed in zip(by_ranker.tolist(), lists, strict=True)
    ]
    if queries:
        found = checked_scores(ranker, queries if of_list else Queries(queries, items))
        if of_list:
            for row, own, listed in zip(by_ranker, found, lists, strict=True):
                scores[row, is_open[row]] = own[: len(listed)]
        else:
            scores[by_ranker] = found
    scores[~is_open | np.isposinf(scores)] = -np.inf
    return scores


def _listed(items: Candidates, is_open: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(items.ids[place] for place in np.flatnonzero(is_open))


def _places(lists: Sequence[Collection[str]], items: Candidates) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of each item of B lists, without those that are not among `items`."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    rows, column = np.repeat(np.arange(len(lists)), lengths), items.places
    places = np.fromiter((column.get(i, -1) for i in chain.from_iterable(lists)), np.int64, len(rows))
    return rows[places >= 0], places[places >= 0]


def boosted(rows: NDArray[np.int64], factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order [N] of items after their boosts: an item at place n of its row moves to place n / factor.

    At an equal place, the item with the higher factor comes first. So a single item at place 10 with the factor 2
    comes to place 5, and one at place 5 with the factor 0.5 to place 10. Places decide and not scores, because
    rankers have scores in different units, and a search of titles knows those of the best items only.

    Args:
        rows: [N] row of each item, in order; the items of a row are best first.
        factors: [N] boost of each item.
    """
    places = np.arange(len(rows)) - np.searchsorted(rows, rows) + 1
    return np.lexsort((places, -factors, places / factors, rows))


def boosted_depth(k: int, factors: NDArray[np.float64]) -> int:
    """Return a number of items before their boosts (`boosted`) that contain the k best items after them."""
    # The first k items have at most the place k / lowest, and an item at place n has at least n / highest.
    return ceil(k * max(1.0, factors.max(initial=1.0)) / min(1.0, factors.min(initial=1.0)))


def top(
    scores: Scores, k: int, factors: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Scores]:
    """Return row, column and score [N] of the k best columns of each row, best first, without those that are -inf.

    The best have the highest scores, or the first places after their boosts (`boosted`). Equal scores are in the
    order of columns.
    """
    depth = k if factors is None else boosted_depth(k, factors)
    least = np.full((len(scores), 1), -np.inf, dtype=np.float32)
    if depth < scores.shape[1]:
        least = np.partition(scores, -depth, axis=1)[:, -depth, None]
    rows, columns = np.nonzero((scores >= least) & (scores > -np.inf))  # more than `depth` in a row if there are ties
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))
    if factors is not None:
        order = order[boosted(rows, factors[columns[order]])]
    begins = np.searchsorted(rows, np.arange(len(scores)))
    kept = order[np.arange(len(rows)) - begins[rows] < k]
    return rows[kept], columns[kept], values[kept]


def _top_by_group(
    scores: Scores, k: int, groups: NDArray[np.int64], at_most: int, factors: NDArray[np.float64] | None = None
) -> tuple[Any, Any, Scores]:
    """Return row, column and score [N] as `top` does, with at most `at_most` columns of each group in a row."""
    depth, rest = 4 * k, np.arange(len(scores))
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], Scores]] = []
    while len(rest):
        rows, columns, values = top(scores[rest], depth, factors)
        kept = _within(rows, columns, groups, at_most)
        rows, columns, values = rows[kept], columns[kept], values[kept]
        first = np.arange(len(rows)) - np.searchsorted(rows, rows) < k
        # A row is done if it has k items, or if it has no others.
        is_done = (np.bincount(rows, minlength=len(rest)) >= k) | (depth >= scores.shape[1])
        some = first & is_done[rows]
        found.append((rest[rows[some]], columns[some], values[some]))
        rest, depth = rest[~is_done], 4 * depth
    rows, columns, values = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order], values[order]


def _within(
    rows: NDArray[np.int64], columns: NDArray[np.int64], groups: NDArray[np.int64], at_most: int
) -> NDArray[np.bool_]:
    """Return whether an item [N] is among the first `at_most` of its group in its row; rows are in order."""
    own = groups[columns]
    # Sorted by row and group, an item's place in its group is its distance from the group's first item.
    order = np.lexsort((np.arange(len(rows)), own, rows))
    is_first = np.ones(len(rows), dtype=np.bool_)
    is_first[1:] = (np.diff(rows[order]) != 0) | (np.diff(own[order]) != 0)
    begins = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows)) - begins
    return (place < at_most) | (own < 0)
