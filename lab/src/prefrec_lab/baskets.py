"""Next-basket evaluation: rank the catalogue for all items that a user interacted with at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
"""One example per item of a basket, with that item as target. All have the history before the basket."""


def evaluate_baskets(
    rankers: Sequence[Ranker],
    data: PreparedData,
    *,
    split: str = "test",
    ks: Sequence[int] = (5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
) -> Evaluation:
    """Evaluate rankers on next baskets, in full ranking.

    Metrics are `hr@K` (at least one item of the basket is in the top K), `recall@K` (share of the basket in the
    top K), `ndcg@K` and `mrr` (of the first item of the basket), one value per basket, in expectation over ties.

    Args:
        rankers: rankers that support full ranking.
        data: prepared data. Only complete baskets count (`baskets_of`); a split by time has no others.
        split: `validation` or `test`.
        ks: cut-offs K.
        compare: as in `evaluate`.

    Raises:
        DataError: the split has no complete basket.
    """
    baskets, seen = baskets_of(data, split)
    rows = [row for basket in baskets for row in basket]
    number = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    seen_rows = [seen[n] for n in number]
    values: dict[tuple[str, str], Floats] = {}
    for ranker in rankers:
        ranks = ranks_of(rank_catalogue(ranker, rows, data.catalogue, seen_rows))
        values |= {(ranker.name, metric): column for metric, column in basket_metrics(*ranks, number, ks).items()}
    means = Means(values, [basket[0].user_id for basket in baskets])
    chance = [len(basket) / (len(data.catalogue) - len(known)) for basket, known in zip(baskets, seen, strict=True)]
    comparisons = corrected(compare_columns(means, named_pairs(compare, [ranker.name for ranker in rankers])))
    return Evaluation(means.table(), *means.size, {}, comparisons, float(np.mean(chance)), FULL_RANKING)


def baskets_of(data: PreparedData, split: str) -> tuple[list[Basket], list[set[str]]]:
    """Return the baskets of a split, and the items [B] that their users had seen before.

    A basket has the items that a user interacted with at the same time and had not seen before. Incomplete baskets
    are excluded: with a split by each user's last item, their other items are in training.
    """
    rows = data.examples(split, None)
    if not rows or rows[0].time is None:
        raise DataError(
            f"the {split} split has no examples with dates, which baskets need: a basket is what a user interacted "
            "with at the same time"
        )
    log = pl.concat(data.logs, how="diagonal")
    sizes = {(user, time): n for user, time, n in log.group_by("user_id", "timestamp").len().iter_rows()}
    groups: dict[tuple[str, int | None], Basket] = {}
    for row in rows:
        groups.setdefault((row.user_id, row.time), []).append(row)
    complete = [group for key, group in groups.items() if len(group) == sizes[key]]
    baskets, seen = [], []
    for group, known in zip(complete, seen_items(data, [group[0] for group in complete]), strict=True):
        if targets := dict.fromkeys(row.target for row in group if row.target not in known):
            first = group[0]
            baskets.append([replace(first, candidates=(t,), target=t) for t in targets])
            seen.append(known)
    if not baskets:
        raise DataError(
            f"the {split} split has no complete basket: prepare the data with a split by time (data.split: time)"
        )
    return baskets, seen


def basket_metrics(
    ranks: Ints, tied: Ints, baskets: NDArray[np.integer], ks: Sequence[int] = (5, 10)
) -> dict[str, Floats]:
    """Return metric → values [B] of B baskets, in expectation over random tie-breaking.

    Args:
        ranks, tied: [N] of each relevant item, from `target_ranks`.
        baskets: [N] index of each item's basket, ascending, from 0 to B − 1.
        ks: cut-offs K.
    """
    starts = np.flatnonzero(np.diff(baskets, prepend=-1))
    sizes = np.diff(starts, append=len(baskets))
    first = [_first_hits(r, t) for r, t in zip(np.split(ranks, starts[1:]), np.split(tied, starts[1:]), strict=True)]

    def sums(values: Floats) -> Floats:
        return np.add.reduceat(values, starts)

    values = {f"hr@{k}": np.array([chances[: max(k - at + 1, 0)].sum() for at, chances in first]) for k in ks}
    values |= {f"recall@{k}": sums(expectation(partial(hit_rate, k=k), ranks, tied)) / sizes for k in ks}
    for k in ks:
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        values[f"ndcg@{k}"] = sums(expectation(partial(ndcg, k=k), ranks, tied)) / ideal[np.minimum(sizes, k) - 1]
    values["mrr"] = np.array([(chances / (at + np.arange(len(chances)))).sum() for at, chances in first])
    return values


def _first_hits(ranks: Ints, tied: Ints) -> tuple[int, Floats]:
    """Return the best possible rank of the first relevant item, and the probabilities that it is 0, 1, … below that.

    Of n items with the same score, m are relevant, in random order. The first relevant one is not among the first j
    with probability (n − m)/n · (n − m − 1)/(n − 1) ⋯ (j factors).
    """
    best = int(ranks.min())
    at = ranks == best
    n, m = int(tied[at][0]) + 1, int(at.sum())
    left = np.arange(n, m - 1, -1)  # items at the next rank or below
    later = np.cumprod((left - m) / left)
    return best, -np.diff(later, prepend=1.0)
