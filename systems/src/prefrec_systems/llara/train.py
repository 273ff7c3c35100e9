"""LLaRA's curriculum, and SFT of adapter and projector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefrec.errors import DataError
from prefrec.prompts import ChoiceSet
from prefrec.training import ChoiceDataset, SFTTrainer
from prefrec.training.sampler import StepSampler
from prefrec_systems.llara.embedding import load_projector, save_projector


class CurriculumDataset(ChoiceDataset):
    """Choice sets with one answer: text prompts at first, hybrid prompts at the end.

    After τ of T training examples, an example is hybrid with probability τ/T (Liao et al., SIGIR 2024). This depends
    only on seed, epoch and example, so that a resumed run repeats it.

    Args:
        hybrid: the examples as hybrid prompts.
        text: the same examples as text only.
        epochs: number of epochs.
        seed: of the sampling, and of the order of examples (`StepSampler`).

    Raises:
        DataError: there are no examples, or `hybrid` and `text` differ in length.
    """

    def __init__(self, hybrid: Sequence[ChoiceSet], text: Sequence[ChoiceSet], *, epochs: float, seed: int) -> None:
        super().__init__(hybrid)
        if len(text) != len(hybrid):
            raise DataError(f"{len(hybrid)} hybrid prompts and {len(text)} as text: each example needs both")
        self.text = list(text)
        self.epochs = epochs
        self.seed = seed
        self.is_hybrid = np.zeros(len(text), dtype=bool)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sample which examples of this epoch are hybrid."""
        rows = len(self.text)
        order = StepSampler(rows, rows, None, self.seed)
        order.set_epoch(epoch)
        probability = np.empty(rows)
        probability[list(order)] = (epoch + np.arange(rows) / rows) / self.epochs
        self.is_hybrid = np.random.default_rng((self.seed, epoch)).random(rows) < probability

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"choices": (self.choice_sets if self.is_hybrid[index] else self.text)[index]}


class LlaraTrainer(SFTTrainer):
    """`SFTTrainer` for a model with item tokens (`add_items`); projector and adapter are saved together."""

    description = "LLaRA"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_projector(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projector(model or self.model, Path(resume_from_checkpoint))
