"""Baselines, such as popularity, and attributes of items, as rankers that others query."""

from __future__ import annotations

from prefrec.errors import ConfigError
from prefrec.rankers.attributes import Comparison, attribute_name, attribute_ranker
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import unable
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs


class BaselineStage(RankerStage):
    """A baseline that counts the training interactions. It is fitted when it is first queried."""

    learns = False

    def __init__(self, inputs: RunInputs, name: str, first: RankerStage | None = None) -> None:
        self.inputs = inputs
        self.name = name
        self.first = first

    @property
    def key(self) -> str:
        return stage_key(reference=self.name, data=self.inputs.data_key, seed=self.inputs.seed)

    def load(self, batch_size: int) -> Ranker:
        if reason := unable(self.inputs.data.train_interactions, [self.name]).get(self.name):
            raise ConfigError(f"{self.name} {reason}: name another ranker")
        return self.inputs.baseline(self.name, "validation")  # before validation examples: the training log


class CountedBaselineStage(BaselineStage):
    """A baseline that counts what is known before the examples of a split, such as a part of a blend."""

    has_out_of_fold = True

    def load(self, batch_size: int) -> Ranker:
        return self.inputs.baseline(self.name, "test")

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return self.inputs.baseline(self.name, "validation")


class AttributeStage(RankerStage):
    """A column of the catalogue as a part of a blend. Nothing is learnt, and nothing counted."""

    learns = False

    def __init__(self, inputs: RunInputs, column: str, comparison: Comparison) -> None:
        self.inputs = inputs
        self.column, self.comparison = column, comparison
        self.name = attribute_name(column, comparison)

    @property
    def key(self) -> str:
        return stage_key(attribute=self.name, data=self.inputs.data_key)

    def load(self, batch_size: int) -> Ranker:
        return attribute_ranker(self.inputs.data.catalogue, self.column, self.comparison)
