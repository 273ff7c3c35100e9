"""Rejected answers of alignment: candidate lists drawn again, uniformly, by popularity or by a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import tee
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import track
from prefrec.data import PreparedData, RankingExample, Window
from prefrec.data.candidates import draw_candidates, popularity_weights
from prefrec.errors import DataError

DrawnFrom = Literal["uniform", "popularity", "in-batch", "hard", "reference"]
"""`uniform`: all items alike; `popularity`: in proportion to training interactions + 1; `in-batch`: targets of other
rows; `hard`: items of a uniform pool with a model's highest scores; `reference`: by a model's probabilities.
"""
Judge = Callable[[Sequence[RankingExample]], NDArray[np.float64]]
"""Function of B examples that returns scores [B, C] of their candidates, such as `Ranker.score`."""
Sampler = Callable[..., Iterable[list[str]]]
"""Function `sampler(histories, k, rngs, without)` that gives k item ids to follow each history: see
`CatalogueRanker.sample`.
"""
_SPLIT = "negatives"


def redraw_lists(
    rows: Sequence[RankingExample],
    data: PreparedData,
    how: DrawnFrom,
    *,
    seed: int,
    size: int | None = None,
    pool: int = 64,
    judge: Judge | None = None,
    sampler: Sampler | None = None,
    known: pl.DataFrame | None = None,
) -> list[RankingExample]:
    """Return the rows with new candidates beside the target, in random order.

    Target, history and the `known` items are excluded, so a negative may be an item that the user takes after the
    training part, as in practice. Raise DataError if there are not enough items to draw from.

    Args:
        how: see `DrawnFrom`. `judge` scores the `pool` of items of a row for `hard`; `sampler` draws for `reference`.
        size: candidates per list, the target included; None: the length of the longest list.
        known: `user_id, item_id`; None: the training interactions.
    """
    if not rows:
        return []
    log = data.train_interactions if known is None else known
    size = max(len(e.candidates) for e in rows) if size is None else size
    if how == "in-batch":
        return _in_batch(rows, _items_of(log, rows), size, seed)
    if how == "reference" and sampler is not None:
        return _sampled(rows, sampler, size, seed)
    shown = [(e.user_id, i) for e in rows for i in e.history]
    frames = [log.select("user_id", "item_id"), pl.DataFrame(shown, schema=["user_id", "item_id"], orient="row")]
    touched = pl.concat([f.cast(pl.String) for f in frames])
    windows = [Window(e.user_id, index, e.history, e.target) for index, e in enumerate(rows)]
    ids = data.catalogue.ids
    weights = popularity_weights(data.train_interactions, ids) if how == "popularity" else None
    drawn = size
    if how == "hard":
        most = max(len(own) for own in _items_of(touched, rows).values())
        drawn = max(size, 1 + min(pool, len(ids) - most - 1))
    lists = draw_candidates(windows, ids, touched, split=_SPLIT, seed=seed, size=drawn, weights=weights)
    return lists if judge is None or how != "hard" else _hardest(lists, judge(lists), size)


def with_room(rows: Sequence[RankingExample], data: PreparedData, number: int) -> list[RankingExample]:
    """Return the rows of users who left `number` items beside those of their training interactions.

    The history and the target of a row count, too.
    """
    taken, n_items = _items_of(data.train_interactions, rows), len(data.catalogue)
    return [e for e in rows if n_items - len(taken[e.user_id].union(e.history, (e.target,))) >= number]


def false_negatives(rows: Sequence[RankingExample], data: PreparedData) -> float:
    """Return the share of negatives that the user takes after the target, in training or held out.

    It is to be printed; nothing may learn from it.
    """
    taken: dict[str, list[str]] = {e.user_id: [] for e in rows}
    for log in (log.filter(pl.col("user_id").is_in(list(taken))) for log in data.logs):
        for user, item in log.select("user_id", "item_id").iter_rows():
            taken[user].append(item)
    for e in (*data.validation, *data.test):
        taken.setdefault(e.user_id, []).append(e.target)
    later = [set(own[own.index(e.target) + 1 :]) if e.target in (own := taken[e.user_id]) else set() for e in rows]
    found = [i in after for e, after in zip(rows, later, strict=True) for i in e.candidates if i != e.target]
    return sum(found) / max(1, len(found))


def _hardest(rows: Sequence[RankingExample], scores: NDArray[np.float64], size: int) -> list[RankingExample]:
    """Return the rows with the target and the `size` − 1 best other candidates, in their old order."""
    hardest = []
    for example, row in zip(rows, scores, strict=True):
        own = example.target_index
        order = [i for i in np.argsort(-row[: len(example.candidates)], kind="stable").tolist() if i != own]
        kept = sorted([own, *order[: size - 1]])
        hardest.append(replace(example, candidates=tuple(example.candidates[i] for i in kept)))
    return hardest


def _sampled(rows: Sequence[RankingExample], sampler: Sampler, size: int, seed: int) -> list[RankingExample]:
    # With these negatives and β = 1 the optimum of S-DPO is the distribution of the data, for any reference.
    rngs, theirs = tee(np.random.default_rng((seed, 5, index)) for index in range(len(rows)))
    left_out = ({e.target, *e.history} for e in rows)
    drawn_lists = sampler([e.history for e in rows], size - 1, theirs, left_out)
    sampled = []
    for e, rng, drawn in zip(track(rows, "negatives"), rngs, drawn_lists, strict=True):
        if len(drawn) < size - 1:
            left = f"only {len(drawn)} items are left beside the history of user {e.user_id!r}"
            raise DataError(f"{left}, but {size - 1} negatives were asked for: lower num_negatives")
        listed = [e.target, *drawn]
        sampled.append(replace(e, candidates=tuple(listed[i] for i in rng.permutation(size).tolist())))
    return sampled


def _in_batch(
    rows: Sequence[RankingExample], taken: Mapping[str, Collection[str]], size: int, seed: int
) -> list[RankingExample]:
    """Return the rows with the targets of the rows after them in one random order, as in a batch."""
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(rows)).tolist()
    redrawn = list(rows)
    for start, row in enumerate(order):
        example = rows[row]
        listed, without = [example.target], {example.target, *example.history, *taken[example.user_id]}
        for step in range(1, len(order)):
            item = rows[order[(start + step) % len(order)]].target
            if item not in without:
                without.add(item)
                listed.append(item)
            if len(listed) == size:
                break
        if len(listed) < size:
            raise DataError(
                f"in-batch negatives: the {len(rows)} rows have only {len(listed) - 1} targets that user "
                f"{example.user_id!r} has not seen, but answer sets of {size} need {size - 1}; take more rows"
            )
        redrawn[row] = replace(example, candidates=tuple(listed[i] for i in rng.permutation(size).tolist()))
    return redrawn


def _items_of(log: pl.DataFrame, rows: Sequence[RankingExample]) -> dict[str, set[str]]:
    """Return user → items for the users of these rows, with an empty set for users who are not in the log."""
    items: dict[str, set[str]] = {e.user_id: set() for e in rows}
    for user, item in log.select("user_id", "item_id").iter_rows():
        if user in items:
            items[user].add(item)
    return items
