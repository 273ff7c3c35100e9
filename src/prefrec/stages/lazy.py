"""Rankers that are loaded on their first query, and that blends of one run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Query
from prefrec.rankers.base import Ranker
from prefrec.rankers.matrices import pad_scores

MOST_KEPT = 8_000_000
"""Scores of a ranker to keep in memory, 32 MB, for other blends that query it about the same examples next."""


class Loadable(Protocol):
    """The part of a `RankerStage` that is needed to load its ranker."""

    name: str

    @property
    def key(self) -> str:
        """A hash of everything that the ranker depends on."""
        ...

    def load(self, batch_size: int) -> Ranker:
        """Load the ranker."""
        ...


@dataclass(frozen=True, eq=False)
class _Scored:
    """A block of queries [B], their times [B], which do not count when queries are compared, and scores [B, C]."""

    queries: list[Query]
    times: list[int | None]
    scores: NDArray[np.float32]


class LazyRanker:
    """The ranker of a stage, which is loaded only to score examples without known predictions.

    An evaluation begins with `use_predictions`. From then on, scores of the latest blocks of examples are kept for
    the next blend.
    """

    def __init__(self, stage: Loadable, batch_size: int) -> None:
        self.name = stage.name
        self.stage = stage
        self.batch_size = batch_size
        self.predictions: list[dict[str, float]] = []
        self.kept: list[_Scored] | None = None

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep the stage's predictions, which may be of other examples than the next ones."""
        frame = answers.get(self.stage.key)
        rows = [] if frame is None else frame.select("candidates", "scores").iter_rows()
        self.predictions = [dict(zip(*row, strict=True)) for row in rows]
        self.kept = [] if self.kept is None else self.kept

    def forget(self) -> None:
        """Forget all predictions and scores, because an evaluation has ended. A ranker that is loaded stays so."""
        self.predictions, self.kept = [], None

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        if self._has_predicted(queries):
            rows = zip(self.predictions, queries, strict=True)
            return pad_scores([[scores[c] for c in q.candidates] for scores, q in rows])
        if self.kept is None:  # a server must not keep the scores of all requests
            return self._ranker.score(queries)
        asked, times = list(queries), [q.time for q in queries]
        for block in reversed(self.kept):
            # Lists of the same objects are compared quickly, however many candidates each of them has.
            if block.times == times and block.queries == asked:
                return block.scores.astype(np.float64)
        self.kept.append(_Scored(asked, times, self._ranker.score(queries).astype(np.float32)))
        while len(self.kept) > 1 and sum(block.scores.size for block in self.kept) > MOST_KEPT:
            del self.kept[0]
        return self.kept[-1].scores.astype(np.float64)

    def _has_predicted(self, queries: Sequence[Query]) -> bool:
        if len(self.predictions) != len(queries):
            return False
        return all(scores.keys() >= {*q.candidates} for scores, q in zip(self.predictions, queries, strict=True))

    @cached_property
    def _ranker(self) -> Ranker:
        return self.stage.load(self.batch_size)
