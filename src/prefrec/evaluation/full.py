"""Full ranking: blocks of examples share one tuple of candidates, and only a few numbers per example are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.evaluation.metrics import target_ranks
from prefrec.evaluation.predictions import checked_scores, prediction_frame
from prefrec.rankers.base import LearningRanker, Ranker
from prefrec.rankers.matrices import blocks, top_columns

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
    (frame,) = rank_together([ranker], examples, catalogue, seen, known_items, shared=shared)
    return frame


def rank_together(
    rankers: Sequence[Ranker],
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]],
    known_items: Collection[str] = (),
    *,
    shared: bool = True,
) -> list[pl.DataFrame]:
    """Return what `rank_catalogue` does for each of several rankers, all of which score a block before the next one.

    Rankers that query the same others, such as a blend and the blends without a part, then do so with the same
    block one after the other, so that its scores are computed once and not kept for longer.
    """
    column = catalogue.index
    known = np.isin(catalogue.ids, list(known_items))
    items = tuple(column)
    asked: list[Ranker] = []
    for ranker in rankers:
        if isinstance(ranker, LearningRanker):
            ranker = ranker.learn([replace(e, candidates=items) for e in examples])
        asked.append(ranker)
    frames: list[list[pl.DataFrame]] = [[] for _ in rankers]
    for rows in blocks(len(examples), 4 * len(column)):  # several arrays of this size are in memory
        block = list(examples[rows])
        questions = _Questions.of(block, seen[rows], column, shared)
        targets = np.array([column[e.target] for e in block])
        for ranker, own in zip(asked, frames, strict=True):
            scores = questions.scores(ranker, column)
            try:
                ranks = target_ranks(scores, targets)
            except ValueError as e:
                raise ModelError(f"ranker {ranker.name!r}: {e}") from None
            best = _best(ranker.name, block, items, scores, ranks)
            own.append(best.with_columns(_among_class(scores, targets, known)))
    return [pl.concat(own).with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")) for own in frames]


@dataclass(frozen=True)
class _Questions:
    """A block of examples in full ranking.

    Attributes:
        examples: [B] with all items as candidates, or with those that are not hidden.
        hidden: rows and columns of the items that are no candidates, if all examples have the same tuple of items.
    """

    examples: list[RankingExample]
    hidden: tuple[list[int], list[int]] | None

    @classmethod
    def of(
        cls,
        block: Sequence[RankingExample],
        seen: Sequence[Collection[str]],
        column: Mapping[str, int],
        shared: bool,
    ) -> Self:
        """Return the questions about a block of examples; `column` is item → its column, of all items."""
        items = tuple(column)
        excluded = [{*known} - {e.target} for e, known in zip(block, seen, strict=True)]
        if not shared:
            lists = [tuple(item for item in items if item not in left_out) for left_out in excluded]
            return cls([replace(e, candidates=listed) for e, listed in zip(block, lists, strict=True)], None)
        places = [(row, column[i]) for row, left_out in enumerate(excluded) for i in left_out if i in column]
        hidden = [row for row, _ in places], [place for _, place in places]
        return cls([replace(e, candidates=items) for e in block], hidden)

    def scores(self, ranker: Ranker, column: Mapping[str, int]) -> NDArray[np.float64]:
        """Return a ranker's scores [B, I] of all items, -inf for those that are no candidates."""
        result = checked_scores(ranker, self.examples)
        if self.hidden is not None:
            scores = np.array(result, dtype=np.float64)
            scores[self.hidden] = -np.inf
            return scores
        scores = np.full((len(self.examples), len(column)), -np.inf)
        for row, own, e in zip(scores, result, self.examples, strict=True):
            row[[column[i] for i in e.candidates]] = own[: len(e.candidates)]
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
    columns = top_columns(scores, kept)
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
