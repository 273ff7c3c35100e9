"""Next baskets: questions with several relevant items, which a user took at the same time, in full ranking."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.errors import DataError
from prefrec.evaluation.evaluate import named_pairs
from prefrec.evaluation.full import rank_catalogue
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats, Ints, expectation, hit_rate, ndcg
from prefrec.evaluation.outcome import Evaluation, compare_columns, corrected
from prefrec.evaluation.predictions import ranks_of
from prefrec.evaluation.verdict import FULL_RANKING
from prefrec.rankers.base import Ranker

Basket = list[RankingExample]
"""A row for each item of a basket, as target. All have the history before the basket."""


def evaluate_baskets(
    rankers: Sequence[Ranker],
    data: PreparedData,
    *,
    split: str = "test",
    ks: Sequence[int] = (5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
) -> Evaluation:
    """Rank the catalogue for each next basket, and measure all of its items at once.

    The metrics are `hr@K` (some item of the basket is among the best K), `recall@K` (share of the basket that is),
    `ndcg@K` and `mrr` (of the first item of the basket), in expectation over ties, with a value for each basket.

    Args:
        data: with a split by time, whose rows are all targets; of others only whole baskets are asked (`baskets_of`).
        compare: as in `evaluate`.

    Raises:
        DataError: no basket of the split is whole.
    """
    baskets, seen = baskets_of(data, split)
    rows = [row for basket in baskets for row in basket]
    number = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    known = [seen[n] for n in number]
    values: dict[tuple[str, str], Floats] = {}
    for ranker in rankers:
        ranks = ranks_of(rank_catalogue(ranker, rows, data.catalogue, known))
        values |= {(ranker.name, metric): own for metric, own in basket_metrics(*ranks, number, ks).items()}
    means = Means(values, [basket[0].user_id for basket in baskets])
    pairs = named_pairs(compare, [ranker.name for ranker in rankers])
    chance = [len(basket) / (len(data.catalogue) - len(own)) for basket, own in zip(baskets, seen, strict=True)]
    comparisons = corrected(compare_columns(means, pairs))
    return Evaluation(means.table(), *means.size, {}, comparisons, float(np.mean(chance)), FULL_RANKING)


def baskets_of(data: PreparedData, split: str) -> tuple[list[Basket], list[set[str]]]:
    """Return the baskets of a split, and the items [B] that their users had seen before.

    A basket holds the items that a user took at the same time and had not seen before. Baskets of which only some
    items are rows of the split are left out: with a split by user's last item, the others are in training.
    """
    rows = data.some(split, None)
    if not rows or rows[0].time is None:
        raise DataError(f"{split} has no rows with dates: a next basket is what a user took at the same time")
    log = pl.concat(data.logs, how="diagonal")
    sizes = {(user, time): n for user, time, n in log.group_by("user_id", "timestamp").len().iter_rows()}
    found: dict[tuple[str, int | None], Basket] = {}
    for row in rows:
        found.setdefault((row.user_id, row.time), []).append(row)
    whole = [own for key, own in found.items() if len(own) == sizes[key]]
    baskets, seen = [], []
    for own, taken in zip(whole, seen_items(data, [own[0] for own in whole]), strict=True):
        if targets := dict.fromkeys(row.target for row in own if row.target not in taken):
            first = own[0]
            baskets.append([RankingExample(first.user_id, first.history, (t,), t, first.time) for t in targets])
            seen.append(taken)
    if not baskets:
        raise DataError(f"{split} has no whole basket: prepare the data with a split by time (data.split: time)")
    return baskets, seen


def basket_metrics(
    ranks: Ints, tied: Ints, baskets: NDArray[np.integer], ks: Sequence[int] = (5, 10)
) -> dict[str, Floats]:
    """Return metric → values [B] of B baskets, in expectation over random tie-breaking.

    Args:
        ranks, tied: of each relevant item [N], as `target_ranks` gives them.
        baskets: number of each item's basket [N], ascending, from 0 to B − 1.
    """
    starts = np.flatnonzero(np.diff(baskets, prepend=-1))
    sizes = np.diff(starts, append=len(baskets))
    first = [_first_hits(r, t) for r, t in zip(np.split(ranks, starts[1:]), np.split(tied, starts[1:]), strict=True)]

    def sums(values: Floats) -> Floats:
        return np.add.reduceat(values, starts)

    found = {f"hr@{k}": np.array([chances[: max(k - at + 1, 0)].sum() for at, chances in first]) for k in ks}
    found |= {f"recall@{k}": sums(expectation(partial(hit_rate, k=k), ranks, tied)) / sizes for k in ks}
    for k in ks:
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        found[f"ndcg@{k}"] = sums(expectation(partial(ndcg, k=k), ranks, tied)) / ideal[np.minimum(sizes, k) - 1]
    found["mrr"] = np.array([(chances / (at + np.arange(len(chances)))).sum() for at, chances in first])
    return found


def _first_hits(ranks: Ints, tied: Ints) -> tuple[int, Floats]:
    """Return the best rank that some item can have, and the chances that the first item is there or places below.

    Of n items with the same score m are relevant, in a random order. The first is not among the first j with chance
    (n − m)/n · (n − m − 1)/(n − 1) ⋯, j factors.
    """
    best = int(ranks.min())
    at = ranks == best
    n, m = int(tied[at][0]) + 1, int(at.sum())
    left = np.arange(n, m - 1, -1)  # items at the next place or below
    later = np.cumprod((left - m) / left)
    return best, -np.diff(later, prepend=1.0)
