"""Protocols and base classes of rankers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, PreparedData, Query, RankingExample
from prefrec.equality import ByValue
from prefrec.errors import ModelError

LARGEST = float(np.finfo(np.float32).max)
"""The highest score that an answer can hold."""


@runtime_checkable
class Ranker(Protocol):
    """Scores the candidates of queries; higher is better.

    Popularity, a neural model, a language model and a remote endpoint all have this interface.
    """

    name: str

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates of B queries, in the order of each query's candidates.

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
    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates of B queries; `prefrec.rankers.pad_scores` pads shorter rows."""


@runtime_checkable
class GeneratingRanker(Ranker, Protocol):
    """A ranker that can also answer in text, for the Valid Ratio."""

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the generated answer to each example, as decoded (not normalised)."""
        ...


@runtime_checkable
class ComposedRanker(Ranker, Protocol):
    """A ranker that queries others, unless it knows their predictions."""

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep predictions, by key of their entry. They may be of other examples than the next ones."""
        ...


@runtime_checkable
class SumRanker(Ranker, Protocol):
    """A ranker whose scores are sums over the items of the history, which explains them exactly."""

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        """Return the term [L] of each history item, oldest first, in the score of `item` after that history."""
        ...


@runtime_checkable
class VectorRanker(Ranker, Protocol):
    """A ranker that may have a vector for each item, whose cosines are its notion of similar items."""

    def item_vectors(self) -> tuple[Sequence[str], NDArray[np.floating]] | None:
        """Return ids [I] and vectors [I, D] of items; None if the ranker has none."""
        ...


@runtime_checkable
class PartedRanker(Ranker, Protocol):
    """A ranker whose scores are sums over parts, each of which reads the history, such as a blend."""

    def terms(self, queries: Sequence[Query], item: str) -> dict[str, NDArray[np.float64]]:
        """Return part → its term [B] in the score of `item`, a candidate of B queries, up to a constant."""
        ...


@runtime_checkable
class LearningRanker(Ranker, Protocol):
    """A ranker that learns from the examples that it ranks, such as `ItemOnlyRanker`."""

    def learn(self, examples: Sequence[RankingExample]) -> Ranker:
        """Return the ranker after it has learnt from these examples, which it can then score in blocks."""
        ...


@runtime_checkable
class ListRanker(Ranker, Protocol):
    """A ranker whose score of an item depends on the other candidates, because it reranks the best of them."""

    is_of_list: bool


@dataclass(frozen=True, eq=False)
class Recommendation(ByValue):
    """The best items for one history, best first; ties are in the catalogue's order."""

    item_ids: list[str]  # [≤ K]
    logps: NDArray[np.float32]  # [≤ K] log-probabilities of their titles
    exact: bool  # True if no other item scores higher
    method: Literal["exact", "search", "popularity"]


@runtime_checkable
class SearchRanker(Ranker, Protocol):
    """A ranker that finds the best items of its catalogue itself: a language model that searches the titles."""

    @property
    def lm(self) -> Any:
        """The language model, a `PromptedRanker`."""
        ...

    def recommend(
        self,
        history: Sequence[str],
        k: int,
        *,
        without: Collection[str] = (),
        max_calls: int | None = None,
        logps: NDArray[np.float32] | None = None,
    ) -> Recommendation:
        """Return the k best items for a history, as `CatalogueRanker.recommend` does."""
        ...


@runtime_checkable
class PromptedRanker(Ranker, Protocol):
    """A language model that reads a history as the text or the tokens of a prompt."""

    catalogue: Catalogue
    encoder: Any
    template: Any

    def choice_logps(self, choice_sets: Sequence[Any]) -> NDArray[np.float32]:
        """Return log-probabilities [B, C] of the answers of encoded examples."""
        ...


def checked_scores(ranker: Ranker, queries: Sequence[Query]) -> NDArray[np.float64]:
    """Return the ranker's scores [B, C]; raise ModelError if one is NaN, or above the largest number of float32."""
    scores = ranker.score(queries)
    # The largest of a row is NaN if one is. Answers hold scores in float32, where a larger one would be infinite.
    highest = scores.max(axis=1, initial=-np.inf)
    if bad := int(np.isnan(highest).sum()):
        raise ModelError(f"ranker {ranker.name!r}: {bad} of {len(scores)} examples have NaN scores")
    if bad := int((highest > LARGEST).sum()):
        raise ModelError(f"ranker {ranker.name!r}: {bad} of {len(scores)} examples have scores above {LARGEST:g}")
    return scores
