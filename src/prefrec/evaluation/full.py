"""Full ranking: blocks of examples share their candidates, and only a few numbers per example are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Candidates, Catalogue, Queries, Query, RankingExample
from prefrec.errors import ModelError
from prefrec.evaluation.metrics import target_ranks
from prefrec.evaluation.predictions import PREDICTION_SCHEMA, checked_scores
from prefrec.rankers.base import LearningRanker, Ranker
from prefrec.rankers.matrices import blocks, top_columns

KEPT = 10
"""Items kept per example. Metrics need only the target's rank, and all candidates would be millions of ids."""
_COUNTS = ("rank", "tied", "listed", "class_rank", "class_tied", "class_listed")


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
        shared: whether all examples of a block share all items. False: each gets only its unseen items, for rankers
            whose score of an item depends on the other candidates.
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
    items = Candidates(column)
    asked: list[Ranker] = []
    for ranker in rankers:
        if isinstance(ranker, LearningRanker):
            ranker = ranker.learn([replace(e, candidates=items.ids) for e in examples])
        asked.append(ranker)
    found: list[list[_Answers]] = [[] for _ in rankers]
    for rows in blocks(len(examples), 4 * len(column)):  # several arrays of this size are in memory
        block = list(examples[rows])
        questions = _Questions.of(block, seen[rows], items, shared)
        targets = np.array([column[e.target] for e in block])
        for ranker, own in zip(asked, found, strict=True):
            scores = questions.scores(ranker, items)
            try:
                own.append(_Answers.of(scores, targets, known))
            except ValueError as e:
                raise ModelError(f"ranker {ranker.name!r}: {e}") from None
    return [_frame(ranker.name, examples, items, own) for ranker, own in zip(rankers, found, strict=True)]


@dataclass(frozen=True)
class _Questions:
    """A block of examples in full ranking.

    Attributes:
        queries: [B] with all items as candidates, or with those that are not hidden.
        hidden: rows and columns of the items that are no candidates, if the queries share all items.
    """

    queries: Sequence[Query]
    hidden: tuple[list[int], list[int]] | None

    @classmethod
    def of(
        cls,
        block: Sequence[RankingExample],
        seen: Sequence[Collection[str]],
        items: Candidates,
        shared: bool,
    ) -> Self:
        """Return the questions about a block of examples; `items` are all items, in the order of columns."""
        excluded = [{*known} - {e.target} for e, known in zip(block, seen, strict=True)]
        if not shared:
            lists = [tuple(item for item in items if item not in left_out) for left_out in excluded]
            return cls([replace(e, candidates=listed) for e, listed in zip(block, lists, strict=True)], None)
        column = items.places
        places = [(row, column[i]) for row, left_out in enumerate(excluded) for i in left_out if i in column]
        hidden = [row for row, _ in places], [place for _, place in places]
        return cls(Queries([replace(e, candidates=items.ids) for e in block], items), hidden)

    def scores(self, ranker: Ranker, items: Candidates) -> NDArray[np.float64]:
        """Return a ranker's scores [B, I] of all items, -inf for those that are no candidates."""
        result = checked_scores(ranker, self.queries)
        if self.hidden is not None:
            scores = np.array(result, dtype=np.float64)
            scores[self.hidden] = -np.inf
            return scores
        scores = np.full((len(self.queries), len(items)), -np.inf)
        for row, own, query in zip(scores, result, self.queries, strict=True):
            row[[items.places[i] for i in query.candidates]] = own[: len(query.candidates)]
        return scores


class _Answers(NamedTuple):
    """What is kept of the scores of a block of examples.

    Attributes:
        columns: [B, K] the best items, best first.
        scores: [B, K] their scores; -inf where fewer items are candidates.
        counts: [B, 6] rank, ties and number of candidates of each target, and the same among the items of its class.
    """

    columns: NDArray[np.int64]
    scores: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[np.float64], targets: NDArray[np.int64], known: NDArray[np.bool_]) -> Self:
        """Rank the targets [B] by scores [B, I]; raise ValueError as `target_ranks` does."""
        ranks, tied = target_ranks(scores, targets)
        listed = (scores > -np.inf).sum(axis=1)
        columns = top_columns(scores, min(KEPT, scores.shape[1]))
        order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
        columns = np.take_along_axis(columns, order, 1)
        best = np.take_along_axis(scores, columns, axis=1)
        whole = np.stack([ranks, tied, listed], axis=1)
        return cls(columns, best, np.hstack([whole, _among_class(scores, targets, known, whole)]))


def _among_class(
    scores: NDArray[np.float64], targets: NDArray[np.int64], known: NDArray[np.bool_], whole: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return rank, ties and number of candidates [B, 3] of each target among the items of its class.

    Only the items of the smaller class are counted. What is left of `whole`, the numbers among all items, is of the
    other class.
    """
    is_small = known if 2 * known.sum() < len(known) else ~known
    small = scores[:, is_small]
    own = scores[np.arange(len(targets)), targets][:, None]
    counts = np.stack([(small > own).sum(axis=1), (small == own).sum(axis=1), (small > -np.inf).sum(axis=1)], axis=1)
    # A rank begins at 1, and a target is not tied with itself.
    return np.where(is_small[targets][:, None], counts + np.array([1, -1, 0]), whole - counts)


def _frame(
    name: str, examples: Sequence[RankingExample], ids: Sequence[str], answers: Sequence[_Answers]
) -> pl.DataFrame:
    """Return the predictions of a ranker with the best `KEPT` items of each example, best first."""
    columns, scores, counts = (np.concatenate(part) for part in zip(*answers, strict=True))
    is_listed = np.isfinite(scores)
    row = pl.Series("row", np.repeat(np.arange(len(scores)), is_listed.sum(axis=1)), pl.UInt32)
    best = pl.DataFrame(
        [
            row,
            pl.Series("candidates", ids, pl.String).gather(columns[is_listed]),
            pl.Series("scores", scores[is_listed]),
        ]
    )
    lists = best.group_by("row", maintain_order=True).agg("candidates", "scores")
    whole = pl.DataFrame(
        {
            "ranker": [name] * len(examples),
            "row": pl.int_range(len(examples), dtype=pl.UInt32, eager=True),
            "user_id": [e.user_id for e in examples],
            "target": [e.target for e in examples],
            **dict(zip(_COUNTS, counts.T, strict=True)),
        }
    )
    empty = pl.col("candidates", "scores").fill_null([])
    absent = {column: pl.lit(None, PREDICTION_SCHEMA[column]) for column in ("generated", "choice")}
    joined = whole.join(lists, on="row", how="left", maintain_order="left").with_columns(empty, **absent)
    return joined.select(PREDICTION_SCHEMA.names()).cast(PREDICTION_SCHEMA)
