"""Preference alignments as stages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefrec.runs.served import REFIT
from prefrec.sections import ALIGN, RANKERS, AlignSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import TrainedLMStage, started_from


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
