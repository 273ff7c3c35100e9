"""Ranking of the whole catalogue: blocks of rows share one tuple of candidates, and a few numbers a row are kept."""

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
"""Items kept per row. Whole lists would be millions of names; metrics need the target's rank alone."""


def rank_catalogue(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]],
    known_items: Collection[str] = (),
    *,
    shared: bool = True,
) -> pl.DataFrame:
    """Return predictions with all items as candidates that the row's user has not `seen` [B], the best `KEPT` kept.

    The columns `class_…` are of the ranking among items of the target's class: those in `known_items`, or the others.
    Rows share one tuple of candidates. If not `shared`, each has its unseen items alone, for rankers whose score of
    an item depends on the others. Errors are those of `predict`.
    """
    column = {item: i for i, item in enumerate(catalogue.ids)}
    known = np.isin(catalogue.ids, list(known_items))
    frames = []
    if isinstance(ranker, LearningRanker):
        ranker = ranker.learn([replace(e, candidates=tuple(column)) for e in examples])
    for rows in blocks(len(examples), 4 * len(column)):  # several arrays of this size are held
        asked = list(examples[rows])
        scores = _scores(ranker, asked, seen[rows], column, shared)
        targets = np.array([column[e.target] for e in asked])
        try:
            ranks = target_ranks(scores, targets)
        except ValueError as e:
            raise ModelError(f"ranker {ranker.name!r}: {e}") from None
        best = _best(ranker.name, asked, list(column), scores, ranks)
        frames.append(best.with_columns(_among_class(scores, targets, known)))
    first = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    return pl.concat(frames).with_columns(first)


def _scores(
    ranker: Ranker,
    rows: Sequence[RankingExample],
    seen: Sequence[Collection[str]],
    column: dict[str, int],
    shared: bool,
) -> NDArray[np.float64]:
    """Return scores [B, I] of all items, -inf where the user took one before; `column` is the place of each item."""
    left_out = [{*e.history, *taken} - {e.target} for e, taken in zip(rows, seen, strict=True)]
    lists = [tuple(column)] * len(rows) if shared else [tuple(i for i in column if i not in o) for o in left_out]
    found = np.asarray(ranker.score([replace(e, candidates=own) for e, own in zip(rows, lists, strict=True)]))
    expected = (len(rows), max(map(len, lists)))
    if found.shape != expected:
        raise ModelError(f"ranker {ranker.name!r}: expected scores of shape {expected}, got {found.shape}")
    scores = np.array(found, dtype=np.float64) if shared else np.full((len(rows), len(column)), -np.inf)
    for b, (own, listed) in enumerate(zip(left_out, lists, strict=True)):
        if shared:
            scores[b, [column[i] for i in own if i in column]] = -np.inf
        else:
            scores[b, [column[i] for i in listed]] = found[b, : len(listed)]
    return scores


def _best(
    name: str,
    asked: Sequence[RankingExample],
    ids: Sequence[str],
    scores: NDArray[np.float64],
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> pl.DataFrame:
    """Return predictions with the best `KEPT` items of each row, best first."""
    kept = min(KEPT, scores.shape[1])
    places = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    places = np.take_along_axis(places, np.argsort(-np.take_along_axis(scores, places, 1), axis=1, kind="stable"), 1)
    best = np.take_along_axis(scores, places, axis=1)
    counts = np.isfinite(best).sum(axis=1)
    shown = [
        replace(e, candidates=tuple(ids[i] for i in row[:n]))
        for e, row, n in zip(asked, places.tolist(), counts.tolist(), strict=True)
    ]
    listed = pl.Series("listed", (scores > -np.inf).sum(axis=1), pl.UInt32)
    return prediction_frame(name, shown, best, ranks).with_columns(listed)


def _among_class(
    scores: NDArray[np.float64], targets: NDArray[np.int64], known: NDArray[np.bool_]
) -> list[pl.Series]:
    """Return rank, ties and candidates of each row among the items of its target's class."""
    same = known[None, :] == known[targets][:, None]
    ranks, tied = target_ranks(np.where(same, scores, -np.inf), targets)
    columns = {"class_rank": ranks, "class_tied": tied, "class_listed": (same & (scores > -np.inf)).sum(axis=1)}
    return [pl.Series(name, values, pl.UInt32) for name, values in columns.items()]
