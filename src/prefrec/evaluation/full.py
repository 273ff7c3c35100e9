"""Full ranking: blocks of examples share one tuple of candidates, and only a few numbers per example are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.evaluation.metrics import target_ranks
from prefrec.evaluation.predictions import prediction_frame
from prefrec.rankers.base import LearningRanker, Ranker
from prefrec.rankers.matrices import blocks

KEPT = 10
"""Items kept per example. Metrics need only the target's rank, and all candidates would be millions of ids."""


def rank_catalogue(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]],
    known_items: Collection[str] = (),
    *,
    shared: bool = True,
) -> pl.DataFrame:
    """Return predictions of full ranking: candidates are all items that the example's user has not seen.

    Only the `KEPT` best items of each example are in the frame. The columns `class_…` rank the target among items of
    its class: those in `known_items`, or the others. Errors are those of `predict`.

    Args:
        ranker: the ranker to query.
        examples: B examples, whose own candidates are ignored.
        catalogue: all items.
        seen: [B] items to leave out, as from `seen_items`: those that each example's user has interacted with, the
            history included.
        known_items: items with training interactions.
        shared: whether all examples of a block get the same tuple of all items. False: each gets only its unseen
            items, for rankers whose score of an item depends on the other candidates.
    """
    column = catalogue.index
    known = np.isin(catalogue.ids, list(known_items))
    frames = []
    if isinstance(ranker, LearningRanker):
        ranker = ranker.learn([replace(e, candidates=tuple(column)) for e in examples])
    for rows in blocks(len(examples), 4 * len(column)):  # several arrays of this size are in memory
        block = list(examples[rows])
        scores = _scores(ranker, block, seen[rows], column, shared)
        targets = np.array([column[e.target] for e in block])
        try:
            ranks = target_ranks(scores, targets)
        except ValueError as e:
            raise ModelError(f"ranker {ranker.name!r}: {e}") from None
        best = _best(ranker.name, block, list(column), scores, ranks)
        frames.append(best.with_columns(_among_class(scores, targets, known)))
    return pl.concat(frames).with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))


def _scores(
    ranker: Ranker,
    rows: Sequence[RankingExample],
    seen: Sequence[Collection[str]],
    column: dict[str, int],
    shared: bool,
) -> NDArray[np.float64]:
    """Return scores [B, I] of all items, -inf for seen ones; `column` is item → its column."""
    excluded = [{*known} - {e.target} for e, known in zip(rows, seen, strict=True)]
    if shared:
        lists = [tuple(column)] * len(rows)
    else:
        lists = [tuple(item for item in column if item not in hidden) for hidden in excluded]
    questions = [replace(e, candidates=listed) for e, listed in zip(rows, lists, strict=True)]
    result = np.asarray(ranker.score(questions))
    expected = (len(rows), max(map(len, lists)))
    if result.shape != expected:
        raise ModelError(f"ranker {ranker.name!r}: expected scores of shape {expected}, got {result.shape}")
    scores = np.array(result, dtype=np.float64) if shared else np.full((len(rows), len(column)), -np.inf)
    for b, (hidden, listed) in enumerate(zip(excluded, lists, strict=True)):
        if shared:
            scores[b, [column[i] for i in hidden if i in column]] = -np.inf
        else:
            scores[b, [column[i] for i in listed]] = result[b, : len(listed)]
    return scores


def _best(
    name: str,
    examples: Sequence[RankingExample],
    ids: Sequence[str],
    scores: NDArray[np.float64],
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> pl.DataFrame:
    """Return predictions with the best `KEPT` items of each row, best first."""
    kept = min(KEPT, scores.shape[1])
    columns = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, 1)
    best = np.take_along_axis(scores, columns, axis=1)
    counts = np.isfinite(best).sum(axis=1)
    shown = [
        replace(e, candidates=tuple(ids[i] for i in row[:n]))
        for e, row, n in zip(examples, columns.tolist(), counts.tolist(), strict=True)
    ]
    listed = pl.Series("listed", (scores > -np.inf).sum(axis=1), pl.UInt32)
    return prediction_frame(name, shown, best, ranks).with_columns(listed)


def _among_class(
    scores: NDArray[np.float64], targets: NDArray[np.int64], known: NDArray[np.bool_]
) -> list[pl.Series]:
    """Return rank, ties and number of candidates of each target among the items of its class."""
    same = known[None, :] == known[targets][:, None]
    ranks, tied = target_ranks(np.where(same, scores, -np.inf), targets)
    columns = {"class_rank": ranks, "class_tied": tied, "class_listed": (same & (scores > -np.inf)).sum(axis=1)}
    return [pl.Series(name, values, pl.UInt32) for name, values in columns.items()]
