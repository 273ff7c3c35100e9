"""What every recommender under test looks like to the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.errors import ModelError


@runtime_checkable
class Ranker(Protocol):
    """Scores the candidates of ranking examples; higher is better.

    Popularity, a neural model, a language model or a remote endpoint all look the same to evaluation.
    """

    name: str

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C] of the candidates of B examples, in the order of each example's candidates.

        Rows with fewer than C = max candidates are filled with -inf.
        """
        ...


@runtime_checkable
class GeneratingRanker(Ranker, Protocol):
    """A ranker that can also answer in text, so that the Valid Ratio can be counted."""

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """The generated answer text of each example, as decoded (not normalised)."""
        ...


def checked_scores(ranker: Ranker, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
    """Return the ranker's scores [B, C]; raise ModelError if one is NaN."""
    scores = ranker.score(examples)
    if bad := int(np.isnan(scores).any(axis=1).sum()):
        raise ModelError(f"ranker {ranker.name!r}: {bad} of {len(scores)} rows hold NaN scores")
    return scores
