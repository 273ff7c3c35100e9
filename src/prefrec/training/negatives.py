"""Negatives for alignment: resample candidate sets uniformly, by popularity or by a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import tee
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import track
from prefrec.data import PreparedData, RankingExample, Window
from prefrec.data.candidates import draw_candidates, popularity_weights
from prefrec.errors import ConfigError, DataError

DrawnFrom = Literal["uniform", "popularity", "in-batch", "hard", "reference"]
"""The way to sample negatives.

`uniform`: all items equally. `popularity`: in proportion to training interactions + 1. `in-batch`: targets of other
examples. `hard`: the items of a uniform pool that a model scores highest. `reference`: by the probabilities of the
starting model.
"""
Sampler = Callable[..., Iterable[list[str]]]
"""Function `sampler(examples, k, rngs, without)` that samples k item ids for each example.

`rngs` has a generator for each example, and `without` the ids of items that it may not sample.
"""


def resample_negatives(
    rows: Sequence[RankingExample],
    data: PreparedData,
    how: DrawnFrom,
    *,
    seed: int,
    size: int | None = None,
    pool: int = 64,
    miner: Callable[[Sequence[RankingExample]], NDArray[np.float64]] | None = None,
    sampler: Sampler | None = None,
    excluded: pl.DataFrame | None = None,
) -> list[RankingExample]:
    """Resample the negatives of examples; candidates are in random order.

    Target, history and `excluded` items are left out, by default therefore also the items that the user interacts
    with later in the training log. As in practice, a negative may be an item of the user's held-out interactions.

    With `repeats: keep` only the target and given `excluded` items are left out. A model whose negatives are never
    items that the user has would prefer all of these.

    Args:
        size: candidates per example, including the target. Default: that of the largest candidate set.
        pool: number of items per example that `miner` scores, for `hard`.
        miner: returns the scores [B, C] of the candidates of B examples, such as `Ranker.score`, for `hard`.
        sampler: sampler of negatives, for `reference`.
        excluded: `user_id, item_id` of items that are not negatives. Default: the training interactions, or nothing
            with `repeats: keep`.

    Raises:
        ConfigError: the sampler or the miner is missing.
        DataError: there are not enough items to sample from.
    """
    if how == "reference" and sampler is None:
        raise ConfigError("sampler: reference negatives are sampled by a model: pass its sampler")
    if how == "hard" and miner is None:
        raise ConfigError("miner: hard negatives are those that a model scores highest: pass its scores")
    if not rows:
        return []
    log = excluded
    if log is None:
        log = data.train_interactions.clear() if data.keeps_repeats else data.train_interactions
    size = max(len(e.candidates) for e in rows) if size is None else size
    if how in ("in-batch", "reference"):
        of_users = _items_of(log, rows)
        without = []
        for e in rows:
            history = () if data.keeps_repeats else e.history
            without.append(of_users[e.user_id].union((e.target,), history))
        if how == "in-batch":
            return _in_batch(rows, without, size, seed)
        assert sampler is not None  # of the check above
        return _sampled(rows, sampler, without, size, seed)
    shown = [] if data.keeps_repeats else [(e.user_id, i) for e in rows for i in e.history]
    pair = {"user_id": pl.String, "item_id": pl.String}
    touched = pl.concat(
        [log.select(pl.col(c).cast(pl.String) for c in pair), pl.DataFrame(shown, pair, orient="row")]
    )
    windows = [Window(e.user_id, index, e.history, e.target) for index, e in enumerate(rows)]
    ids = data.catalogue.ids
    weights = popularity_weights(data.train_interactions, ids) if how == "popularity" else None
    drawn = size
    if how == "hard":
        most = max(len(items) for items in _items_of(touched, rows).values())
        drawn = max(size, 1 + min(pool, len(ids) - most - 1))
    examples = draw_candidates(windows, ids, touched, split="negatives", seed=seed, size=drawn, weights=weights)
    return examples if miner is None or how != "hard" else _hardest(examples, miner(examples), size)


def with_room(rows: Sequence[RankingExample], data: PreparedData, number: int) -> list[RankingExample]:
    """Return the examples that have at least `number` possible negatives.

    These are the items that are not in the user's training interactions, nor in the example's history and target;
    with `repeats: keep` all but the target.
    """
    if data.keeps_repeats:
        return [*rows] if len(data.catalogue) > number else []
    seen, n_items = _items_of(data.train_interactions, rows), len(data.catalogue)
    return [e for e in rows if n_items - len(seen[e.user_id].union(e.history, (e.target,))) >= number]


def false_negatives(rows: Sequence[RankingExample], data: PreparedData) -> float:
    """Return the fraction of negatives that the user interacts with after the target, in training or held out.

    It is only for printing; nothing may learn from it.
    """
    items: dict[str, list[str]] = {e.user_id: [] for e in rows}
    for log in (log.filter(pl.col("user_id").is_in(list(items))) for log in data.logs):
        for user, item in log.select("user_id", "item_id").iter_rows():
            items[user].append(item)
    for e in (*data.validation, *data.test):
        items.setdefault(e.user_id, []).append(e.target)
    later = [_after_target(e, items[e.user_id]) for e in rows]
    are_false = [i in after for e, after in zip(rows, later, strict=True) for i in e.candidates if i != e.target]
    return sum(are_false) / max(1, len(are_false))


def _after_target(example: RankingExample, past: list[str]) -> set[str]:
    """Return the items that a user takes after an example's target; `past`: all that the user takes, in order."""
    places = [place for place, item in enumerate(past) if item == example.target]
    if len(places) > 1:  # `repeats: keep`: the target is the first one after the example's history
        history, begin = list(example.history), 0
        for end in range(len(history), len(past)):
            if past[end - len(history) : end] == history:
                begin = end
                break
        places = [place for place in places if place >= begin] or places
    return set(past[places[0] + 1 :]) if places else set()


def _hardest(rows: Sequence[RankingExample], scores: NDArray[np.float64], size: int) -> list[RankingExample]:
    """Keep the target and the `size` − 1 other candidates with the highest scores, without changing their order."""
    hardest = []
    for example, row in zip(rows, scores, strict=True):
        target = example.target_index
        order = [i for i in np.argsort(-row[: len(example.candidates)], kind="stable").tolist() if i != target]
        kept = sorted([target, *order[: size - 1]])
        hardest.append(replace(example, candidates=tuple(example.candidates[i] for i in kept)))
    return hardest


def _sampled(
    rows: Sequence[RankingExample], sampler: Sampler, excluded: Sequence[Collection[str]], size: int, seed: int
) -> list[RankingExample]:
    # With negatives of the reference and β = 1, the optimum of S-DPO is the distribution of the data, whatever the
    # reference is. With those of another ranker q, the reward converges to log p − log q.
    rngs, of_sampler = tee(np.random.default_rng((seed, 5, index)) for index in range(len(rows)))
    negatives = sampler(rows, size - 1, of_sampler, excluded)
    sampled = []
    for e, rng, drawn in zip(track(rows, "negatives"), rngs, negatives, strict=True):
        if len(drawn) < size - 1:
            few = f"there are only {len(drawn)} items that user {e.user_id!r} has not seen"
            raise DataError(f"{few}, but {size - 1} negatives are needed: lower num_negatives")
        candidates = [e.target, *drawn]
        sampled.append(replace(e, candidates=tuple(candidates[i] for i in rng.permutation(size).tolist())))
    return sampled


def _in_batch(
    rows: Sequence[RankingExample], excluded: Sequence[Collection[str]], size: int, seed: int
) -> list[RankingExample]:
    """Use the targets of other examples as negatives: those that follow in a random order, as in a batch."""
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(rows)).tolist()
    redrawn = list(rows)
    for start, row in enumerate(order):
        example = rows[row]
        candidates, without = [example.target], {*excluded[row]}
        for step in range(1, len(order)):
            item = rows[order[(start + step) % len(order)]].target
            if item not in without:
                without.add(item)
                candidates.append(item)
            if len(candidates) == size:
                break
        if len(candidates) < size:
            raise DataError(
                f"in-batch negatives: the {len(rows)} examples have only {len(candidates) - 1} targets that user "
                f"{example.user_id!r} has not seen, but candidate sets of {size} need {size - 1}; use more examples"
            )
        redrawn[row] = replace(example, candidates=tuple(candidates[i] for i in rng.permutation(size).tolist()))
    return redrawn


def _items_of(log: pl.DataFrame, rows: Sequence[RankingExample]) -> dict[str, set[str]]:
    """Return user → items for the users of these examples, with an empty set for users who are not in the log."""
    items: dict[str, set[str]] = {e.user_id: set() for e in rows}
    for user, item in log.select("user_id", "item_id").iter_rows():
        if user in items:
            items[user].add(item)
    return items
