"""Retrieve-then-rank: one ranker retrieves K of any number of candidates, another one reorders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata

from prefrec.data import Query
from prefrec.rankers.base import Ranker, checked_scores
from prefrec.rankers.baselines import RandomRanker
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.matrices import pad_scores

if TYPE_CHECKING:
    from prefrec.recipe import Recipe


class RetrieveThenRankConfig(RankerConfig):
    """A retriever that narrows the candidates, and a ranker that reorders them."""

    kind: Literal["retrieve-then-rank"] = "retrieve-then-rank"
    name: str = Field("retrieve-then-rank", description="Name in tables, and of the ranker's folder.")
    retriever: str = Field("SASRec", description="Baseline or earlier ranker that retrieves.")
    ranker: str = Field("s-dpo", description="Earlier ranker that reorders, usually a language model.")
    retrieve: int = Field(20, ge=1, description="Number of items to retrieve.")

    def needs(self) -> dict[str, list[str]]:
        return {"retriever": [self.retriever], "ranker": [self.ranker]}

    def check_recipe(self, recipe: Recipe, before: Sequence[str]) -> None:
        if self.retriever in recipe.lm_rankers:
            raise ValueError(
                f"rankers.{self.name}.retriever: {self.retriever!r} only scores titles that it is given, "
                "so it cannot retrieve; choose a sequential recommender, MoRec or a baseline"
            )


@dataclass(eq=False)
class RetrieveThenRank:
    """Reorders the K items that a retriever scores highest by another ranker; the others keep the retriever's order.

    The ranker sees the K candidates in random order, which reveals nothing about the retriever. Ties at position K
    are broken at random. Both depend only on seed, user, history and item.
    """

    name: str
    retriever: Ranker
    ranker: Ranker
    k: int
    seed: int = field(default=0, kw_only=True)
    is_of_list: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C], which are positions with ties; -inf in empty columns. Raise ModelError for a NaN."""
        rows: list[NDArray[np.float64]] = []
        picked: list[NDArray[np.int64]] = []
        questions: list[Query] = []
        for q, scores in zip(queries, checked_scores(self.retriever, queries), strict=True):
            row = scores[: len(q.candidates)]
            # A random number for every item would cost more than the retriever.
            least = np.partition(row, -self.k)[-self.k] if len(row) > self.k else -np.inf
            near = np.flatnonzero(row >= least)
            (draw,) = RandomRanker(self.seed).score([q.among(tuple(q.candidates[c] for c in near))])
            best = np.lexsort((draw, -row[near]))[: self.k]
            best = near[best[np.argsort(draw[best])]]  # in a random order
            shown = tuple(q.candidates[c] for c in best)
            questions.append(q.among(shown))
            rows.append(-rankdata(-row, method="dense").astype(np.float64))
            picked.append(best)
        for row, best, order in zip(rows, picked, checked_scores(self.ranker, questions), strict=True):
            row[best] = rankdata(order[: len(best)], method="dense")  # above the others, which are negative
        return pad_scores(rows)
