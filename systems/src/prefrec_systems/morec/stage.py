"""MoRec in a recipe: training sequences and titles in, weights and title vectors out."""

from __future__ import annotations

from functools import cached_property

from prefrec.lm.names import base_digest
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec_systems.morec import MoRecConfig, load_morec, train_morec
from prefrec_systems.sequential.ranker import chosen_epochs


class MoRecStage(RankerStage):
    """MoRec. In a refit it trains for as many epochs as validation examples chose for `first`."""

    Config = MoRecConfig
    config: MoRecConfig

    @cached_property
    def key(self) -> str:
        if self.first:
            return stage_key(data=self.inputs.data_key, refit=self.first.key)
        settings = self.config.model_dump() | {"encoder": base_digest(self.config.encoder)}
        return stage_key(data=self.inputs.data_key, seed=self.inputs.seed, morec=settings)

    def make(self) -> None:
        if is_first():
            epochs = chosen_epochs(self.first.folder) if self.first else None
            train_morec(self.inputs.data, self.config, self.folder, seed=self.inputs.seed, epochs=epochs)

    def load(self, batch_size: int) -> Ranker:
        return load_morec(self.folder, self.inputs.data.catalogue, self.name)
