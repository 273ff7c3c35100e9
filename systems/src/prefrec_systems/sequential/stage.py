"""GRU4Rec, Caser and SASRec in a recipe."""

from __future__ import annotations

from functools import cached_property

from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec_systems.sequential.config import SequentialConfig
from prefrec_systems.sequential.ranker import chosen_settings, load_sequential
from prefrec_systems.sequential.train import train_sequential


class SequentialStage(RankerStage):
    """A sequential recommender. In a refit it has the epochs and the cell that were chosen for `first`."""

    Config = SequentialConfig
    served = True
    config: SequentialConfig

    @cached_property
    def key(self) -> str:
        if self.first:
            return stage_key(data=self.inputs.data_key, refit=self.first.key)
        return stage_key(data=self.inputs.data_key, seed=self.inputs.seed, sequential=self.config.decisive())

    def make(self) -> None:
        if is_first():
            config, epochs = chosen_settings(self.first.folder) if self.first else (self.config, None)
            train_sequential(self.inputs.data, config, self.folder, seed=self.inputs.seed, epochs=epochs)

    def load(self, batch_size: int) -> Ranker:
        return load_sequential(self.folder, self.inputs.data.catalogue, self.name)
