"""Rankers that are loaded on their first query, and that blends of one run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.rankers.base import Ranker
from prefrec.rankers.matrices import pad_scores

MOST_KEPT = 200_000_000
"""Scores of a ranker to keep in memory, for other blends that query it, too."""


class Loadable(Protocol):
    """What a `RankerStage` needs to be loaded."""

    name: str

    @property
    def key(self) -> str:
        """A hash of everything that the ranker depends on."""
        ...

    def load(self, batch_size: int) -> Ranker:
        """Load the ranker."""
        ...


class LazyRanker:
    """The ranker of a stage, which is loaded only to score examples without known predictions.

    An evaluation begins with `know`. From then on, scores of a block of examples are kept for the next blend.
    """

    def __init__(self, stage: Loadable, batch_size: int) -> None:
        self.name = stage.name
        self.stage = stage
        self.batch_size = batch_size
        self.known: list[dict[str, float]] = []
        self.kept: dict[tuple[Any, ...], NDArray[np.float32]] | None = None

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep the stage's predictions, which may be of other examples than the next ones."""
        frame = answers.get(self.stage.key)
        rows = [] if frame is None else frame.select("candidates", "scores").iter_rows()
        self.known = [dict(zip(*row, strict=True)) for row in rows]
        self.kept = {} if self.kept is None else self.kept

    def forget(self) -> None:
        """Forget all predictions and scores, because an evaluation has ended. A ranker that is loaded stays so."""
        self.known, self.kept = [], None

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        pairs = list(zip(self.known, examples, strict=False))
        if len(pairs) == len(self.known) == len(examples) and all(t.keys() >= {*e.candidates} for t, e in pairs):
            return pad_scores([[t[c] for c in e.candidates] for t, e in pairs])
        if self.kept is None:  # a server must not keep the scores of all requests
            return self._ranker.score(examples)
        block = tuple((e, e.time) for e in examples)
        if block not in self.kept:
            if sum(scores.size for scores in self.kept.values()) > MOST_KEPT:
                self.kept.clear()
            self.kept[block] = self._ranker.score(examples).astype(np.float32)
        return self.kept[block].astype(np.float64)

    @cached_property
    def _ranker(self) -> Ranker:
        return self.stage.load(self.batch_size)
