"""Differences of a language model's scores with the questions that share a call with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.rankers import LMRanker

QUESTIONS, TOP = 256, 10
"""Most questions to ask, and length of the lists to compare."""


@dataclass(frozen=True)
class Sharing:
    """Scores of questions in shared calls, compared with those of each question alone.

    Attributes:
        questions: number of questions.
        nats: largest difference of a score.
        lists: number of questions whose `TOP` best answers differ, or are in another order.
    """

    questions: int
    nats: float
    lists: int


def sharing(lm: LMRanker, examples: Sequence[RankingExample]) -> Sharing:
    """Compare the scores of examples that share calls with those of each alone: all items, else the candidates."""
    together = _scores(lm, examples)
    alone = [_scores(lm, [example])[0] for example in examples]
    gaps = [float(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True)]
    changed = sum(not np.array_equal(_best(a), _best(b)) for a, b in zip(alone, together, strict=True))
    return Sharing(len(examples), max(gaps), changed)


def _scores(lm: LMRanker, examples: Sequence[RankingExample]) -> list[NDArray[np.floating]]:
    if lm.has_items:
        return [logps for logps in lm.item_logps([e.history for e in examples]) if logps is not None]
    return [row[: len(e.candidates)] for row, e in zip(lm.score(examples), examples, strict=True)]


def _best(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")[:TOP]
