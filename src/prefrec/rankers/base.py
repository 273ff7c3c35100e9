"""The protocol of recommenders under test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ModelError


@runtime_checkable
class Ranker(Protocol):
    """Scores the candidates of ranking examples; higher is better.

    Popularity, a neural model, a language model or a remote endpoint all look the same to evaluation.
    """

    name: str

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates of B examples, in the order of each example's candidates.

        Rows with fewer than C = max candidates are filled with -inf.
        """
        ...


class FittedRanker(ABC):
    """Base class of your own rankers: `fit` learns from training data, `score` scores candidates.

    Attributes:
        config: the entry of the recipe, a `RankerConfig` with your fields.
        name: name in the tables.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.name: str = config.name

    @abstractmethod
    def fit(self, data: PreparedData) -> Self:
        """Learn from `data.train_interactions`, `data.catalogue` and `data.validation`, and return the ranker."""

    @abstractmethod
    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates of B examples; `prefrec.rankers.pad_scores` pads shorter rows."""


@runtime_checkable
class GeneratingRanker(Ranker, Protocol):
    """A ranker that can also answer in text, so that the Valid Ratio can be counted."""

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the generated answer to each example, as decoded (not normalised)."""
        ...


@runtime_checkable
class ComposedRanker(Ranker, Protocol):
    """A ranker made of others, which need not be asked if their answers are known."""

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Take note of predictions, by the key of their entry; the rows may be others than those asked next."""
        ...


@runtime_checkable
class LearningRanker(Ranker, Protocol):
    """A ranker that learns from the rows that it ranks, such as what lists give away without their users."""

    def learn(self, examples: Sequence[RankingExample]) -> Ranker:
        """Return the ranker after it has learnt from these rows, which it may then score in blocks."""
        ...


def checked_scores(ranker: Ranker, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
    """Return the ranker's scores [B, C]; raise ModelError if one is NaN."""
    scores = ranker.score(examples)
    if bad := int(np.isnan(scores).any(axis=1).sum()):
        raise ModelError(f"ranker {ranker.name!r}: {bad} of {len(scores)} rows hold NaN scores")
    return scores
