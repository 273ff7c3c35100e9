"""Where the rejected answers of alignment come from: lists drawn again, by chance, by popularity, by a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
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
rows; `hard`: those of a uniform pool that a model scores highest; `reference`: by a model's own probabilities.
"""

Judge = Callable[[Sequence[RankingExample]], NDArray[np.float64]]
"""Scores [B, C] of the candidates of B examples, as `Ranker.score` gives them."""

Sampler = Callable[[Sequence[str], int, np.random.Generator, Collection[str]], list[str]]
"""Draws items after a history: `sampler(history, k, rng, without)` gives ids."""

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
    """The same questions with other candidates beside the target, in random order.

    The lists of prepared data leave out what a user takes at any time, later ones included. Here a negative is only
    known not to be in `known`: it may be what the user takes next, as it may be in practice.

    Args:
        rows: the questions.
        data: their items, and the interactions that popularity is counted in.
        how: see `DrawnFrom`.
        seed: of the draws.
        size: candidates of each list, the target among them; None: as many as the longest list has.
        pool: items drawn for a row of which `hard` takes the highest; fewer where the catalogue is small.
        judge: scores the pool for `hard`.
        sampler: draws items for `reference`.
        known: `user_id, item_id` of what a row's user is known to have taken, beside target and history, and is
            never a negative; None: the training interactions.

    Raises:
        DataError: there are not enough items to draw from.
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
    windows = [Window(e.user_id, place, e.history, e.target) for place, e in enumerate(rows)]
    ids = data.catalogue.ids
    weights = popularity_weights(data.train_interactions, ids) if how == "popularity" else None
    drawn = size
    if how == "hard":
        most = max(len(own) for own in _items_of(touched, rows).values())
        drawn = max(size, 1 + min(pool, len(ids) - most - 1))
    lists = draw_candidates(windows, ids, touched, split=_SPLIT, seed=seed, size=drawn, weights=weights)
    return lists if judge is None or how != "hard" else _hardest(lists, judge(lists), size)


def _hardest(rows: Sequence[RankingExample], scores: NDArray[np.float64], size: int) -> list[RankingExample]:
    """Rows with the target and the `size` − 1 other candidates of the highest scores, in their old order."""
    found = []
    for example, row in zip(rows, scores, strict=True):
        own = example.target_index
        order = [i for i in np.argsort(-row[: len(example.candidates)], kind="stable").tolist() if i != own]
        kept = sorted([own, *order[: size - 1]])
        found.append(replace(example, candidates=tuple(example.candidates[i] for i in kept)))
    return found


def _sampled(rows: Sequence[RankingExample], sampler: Sampler, size: int, seed: int) -> list[RankingExample]:
    """Rows with items that a model finds likely; what the user takes at another time may be among them.

    With these negatives and β = 1 the optimum of S-DPO is the distribution of the data, whatever the reference is.
    """
    found = []
    for place, e in enumerate(track(rows, "negatives")):
        rng = np.random.default_rng((seed, 5, place))
        drawn = sampler(e.history, size - 1, rng, {e.target, *e.history})
        if len(drawn) < size - 1:
            raise DataError(f"only {len(drawn)} items are left beside the history of user {e.user_id!r}: lower N")
        listed = [e.target, *drawn]
        found.append(replace(e, candidates=tuple(listed[i] for i in rng.permutation(size).tolist())))
    return found


def _in_batch(
    rows: Sequence[RankingExample], taken: Mapping[str, Collection[str]], size: int, seed: int
) -> list[RankingExample]:
    """Rows with the targets of the rows that follow them in one random order, as rows of a batch lend them."""
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(rows)).tolist()
    found = list(rows)
    for place, row in enumerate(order):
        example = rows[row]
        listed, without = [example.target], {example.target, *example.history, *taken[example.user_id]}
        for step in range(1, len(order)):
            item = rows[order[(place + step) % len(order)]].target
            if item not in without:
                without.add(item)
                listed.append(item)
            if len(listed) == size:
                break
        if len(listed) < size:
            raise DataError(
                f"in-batch negatives: the {len(rows)} rows have only {len(listed) - 1} targets that user "
                f"{example.user_id!r} is not known to have taken, but lists of {size} need {size - 1}; take more rows"
            )
        found[row] = replace(example, candidates=tuple(listed[i] for i in rng.permutation(size).tolist()))
    return found


def _items_of(log: pl.DataFrame, rows: Sequence[RankingExample]) -> dict[str, set[str]]:
    """User → items, of the users of these rows; an empty set for one who is not in the log."""
    found: dict[str, set[str]] = {e.user_id: set() for e in rows}
    for user, item in log.select("user_id", "item_id").iter_rows():
        if user in found:
            found[user].add(item)
    return found
