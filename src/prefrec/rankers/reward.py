"""The reward of an alignment as a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.rankers.base import ComposedRanker, Ranker, checked_scores


class RewardRanker:
    """Score of a candidate = β·(log π − log π_ref).

    The reward is a ratio: it says what the aligned model prefers beyond its reference, and ranks badly alone.

    Args:
        name: name of the ranker.
        policy: the aligned model, whose scores are log-probabilities.
        reference: the model that it started from.
        beta: β of the alignment.
    """

    def __init__(self, name: str, policy: Ranker, reference: Ranker, beta: float) -> None:
        self.name, self.policy, self.reference, self.beta = name, policy, reference, beta

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on."""
        for model in (self.policy, self.reference):
            if isinstance(model, ComposedRanker):
                model.use_predictions(answers)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return rewards [B, C] of the candidates; -inf in empty columns. Raise ModelError if a score is NaN."""
        policy, reference = (checked_scores(model, examples) for model in (self.policy, self.reference))
        empty = np.isneginf(policy) | np.isneginf(reference)
        rewards = self.beta * (np.where(empty, 0, policy) - np.where(empty, 0, reference))
        return np.where(empty, -np.inf, rewards)
