"""Preference alignments as stages, and the reward of an alignment as a ranker."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefrec.rankers.base import Ranker
from prefrec.rankers.reward import RewardRanker
from prefrec.runs.contents import REFIT
from prefrec.runs.stage import stage_key
from prefrec.sections import ALIGN, RANKERS, AlignSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import TrainedLMStage, WithoutCandidates, started_from


class AlignStage(TrainedLMStage):
    """The alignment of a language model.

    In a refit it trains for the epochs that validation chose for `first`, if it chose any.

    Args:
        inputs: shared inputs of the run.
        config: settings of the alignment.
        folder: of the stage.
        start: the model to start from, which is also the reference. None: the base model.
        rankers: `miner` → the ranker that `config` names for it.
        references: folder for the reference's log-probabilities, which alignments can share. None: `folder`.
        first: for a refit, the alignment on the training log.
    """

    kind = ALIGN
    config: AlignSection

    def __init__(
        self,
        inputs: RunInputs,
        config: AlignSection,
        folder: Path,
        start: RankerStage | None = None,
        rankers: Mapping[str, RankerStage] = MappingProxyType({}),
        references: Path | None = None,
        first: RankerStage | None = None,
    ) -> None:
        super().__init__(config.name, inputs, config, folder, start, first)
        self.rankers = rankers
        self.references = references

    @cached_property
    def made_with(self) -> Mapping[str, Any]:
        own: dict[str, Any] = {f"{ALIGN}.{self.name}": self.config.decisive()}
        own |= {f"{RANKERS}.{ranker.name}": ranker.key for ranker in self.rankers.values()}
        if self.first:
            own[REFIT] = self.first.key
        return self.inputs.stage_inputs(**started_from(self.start) | own)

    def make(self) -> None:
        from prefrec.stages.train import chosen_epochs, train_align  # here, because PEFT takes seconds to import

        section = self.config
        if self.first:
            epochs = chosen_epochs(self.first.weights) or section.epochs
            fixed = {"epochs": epochs, "eval_rows": 0, "load_best_model_at_end": False}
            section = section.model_copy(update=fixed)
        start = self.start.weights if self.start else None
        train_align(self.inputs, section, start, self.folder, **self.rankers, references=self.references)


class RewardStage(RankerStage):
    """The reward of an aligned language model as a ranker. There is nothing to train.

    Args:
        name: of the ranker.
        aligned: the aligned model.
        reference: the model that it started from.
        beta: β of the alignment.
        first: for a refit, the reward of the alignment on the training log.
    """

    def __init__(
        self, name: str, aligned: RankerStage, reference: RankerStage, beta: float, first: RankerStage | None = None
    ) -> None:
        self.name = name
        self.aligned = aligned
        self.reference = reference
        self.beta = beta
        self.first = first

    @cached_property
    def key(self) -> str:
        return stage_key(reward=self.aligned.key, reference=self.reference.key, beta=self.beta)

    @property
    def model(self) -> Mapping[str, Any] | None:
        return self.aligned.model

    @property
    def is_slow(self) -> bool:
        return self.aligned.is_slow

    def load(self, batch_size: int) -> Ranker:
        return RewardRanker(self.name, self.aligned.load(batch_size), self.reference.load(batch_size), self.beta)

    def load_full(self, batch_size: int) -> Ranker:
        """Load the reward for full ranking, where prompts show no candidates."""
        policy, before = (stage.full or stage for stage in (self.aligned, self.reference))
        return RewardRanker(self.name, policy.load(batch_size), before.load(batch_size), self.beta)

    @cached_property
    def full(self) -> RankerStage:
        return WithoutCandidates(self)
