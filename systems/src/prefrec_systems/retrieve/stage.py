"""Retrieve-then-rank in a recipe: two rankers are combined, and nothing is trained."""

from __future__ import annotations

from functools import cached_property

from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec_systems.retrieve.ranker import RetrieveThenRank, RetrieveThenRankConfig


class RetrieveThenRankStage(RankerStage):
    """A retriever, and a ranker that reorders what it retrieves."""

    Config = RetrieveThenRankConfig
    served = True
    queries = True
    is_slow = True
    config: RetrieveThenRankConfig

    @property
    def retriever(self) -> RankerStage:
        """The retriever, in full ranking if it supports that."""
        retriever = self.before[self.config.retriever]
        return retriever.full or retriever

    @property
    def ranker(self) -> RankerStage:
        """The ranker that reorders."""
        return self.before[self.config.ranker]

    @cached_property
    def key(self) -> str:
        return stage_key(
            retrieve=self.config.retrieve,
            seed=self.inputs.seed,
            retriever=self.before[self.config.retriever].key,
            ranker=self.ranker.key,
            model=self.ranker.model,
        )

    @property
    def has_out_of_fold(self) -> bool:
        return self.retriever.has_out_of_fold or self.ranker.has_out_of_fold

    def load(self, batch_size: int) -> Ranker:
        return self._pair(self.retriever.load(batch_size), self.ranker.load(batch_size))

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return self._pair(self.retriever.out_of_fold.load(batch_size), self.ranker.out_of_fold.load(batch_size))

    def _pair(self, retriever: Ranker, ranker: Ranker) -> Ranker:
        return RetrieveThenRank(self.name, retriever, ranker, self.config.retrieve, seed=self.inputs.seed)
