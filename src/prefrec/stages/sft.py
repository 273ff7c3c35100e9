"""Supervised fine-tuning as a stage, and the same with validation interactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prefrec.data.refit import continued
from prefrec.runs.served import REFIT
from prefrec.sections import SFT, RefitSection, SFTSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import TrainedLMStage, started_from


class SFTStage(TrainedLMStage):
    """Supervised fine-tuning, from the weights of `start` or from the base model."""

    kind = SFT
    config: SFTSection

    def __init__(
        self,
        inputs: RunInputs,
        config: SFTSection,
        folder: Path,
        start: RankerStage | None = None,
        first: RankerStage | None = None,
    ) -> None:
        super().__init__(SFT, inputs, config, folder, start, first)

    @cached_property
    def made_with(self) -> Mapping[str, Any]:
        return self.inputs.stage_inputs(**started_from(self.start) | {SFT: self.config.decisive()})

    def make(self) -> None:
        from prefrec.stages.train import train_sft  # here, because PEFT takes seconds to import

        train_sft(self.inputs, self.config, self.folder, self.start.weights if self.start else None)


class SFTRefitStage(SFTStage):
    """SFT that has also learnt validation interactions.

    It trains again, for the epochs that validation chose; with `refit.epochs`, the best weights go on for as many. No
    validation example is left to choose an epoch, so that the last one is kept.

    Args:
        inputs: of the refit.
        config: settings of SFT.
        refit: how to refit.
        folder: of the stage.
        first: SFT on the training log.
        start: what SFT started from. None: the base model.
    """

    def __init__(
        self,
        inputs: RunInputs,
        config: SFTSection,
        refit: RefitSection,
        folder: Path,
        first: RankerStage,
        start: RankerStage | None = None,
    ) -> None:
        fixed: dict[str, Any] = {"eval_rows": 0}
        if refit.epochs is not None:
            fixed |= {"epochs": refit.epochs, "skip_rows": 0}
        super().__init__(inputs, config.model_copy(update=fixed), folder, start, first)
        self.refit = refit
        self.first: RankerStage = first

    @property
    def learnt(self) -> RunInputs:
        """Inputs with what is left to learn: all of them, or new interactions with a replay of old ones."""
        return self.inputs if self.refit.epochs is None else continued_inputs(self.inputs, self.refit)

    @cached_property
    def made_with(self) -> Mapping[str, Any]:
        return self.inputs.stage_inputs(
            **started_from(self.first) | {REFIT: self.refit.model_dump(exclude={"rankers"})}
        )

    def make(self) -> None:
        from prefrec.stages.train import chosen_epochs, train_sft  # here, because PEFT takes seconds to import

        if self.refit.epochs is not None:
            train_sft(self.learnt, self.config, self.folder, self.first.weights)
            return
        epochs = chosen_epochs(self.first.weights) or self.config.epochs
        section = self.config.model_copy(update={"epochs": epochs})
        train_sft(self.inputs, section, self.folder, self.start.weights if self.start else None)


def continued_inputs(inputs: RunInputs, refit: RefitSection) -> RunInputs:
    """Return the inputs of a refit in which only new interactions, and a replay of old ones, are left to learn."""
    assert inputs.earlier is not None
    return replace(inputs, data=continued(inputs.earlier.data, inputs.data, refit.replay, inputs.seed))
