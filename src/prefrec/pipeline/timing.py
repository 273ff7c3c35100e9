"""Measure the steps of a training and the questions to a language model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback

from prefrec.data import PreparedData, RankingExample
from prefrec.lm.items import cast_layers
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.lm import SHARED
from prefrec.recipe import Recipe
from prefrec.stages.alignment import AlignStage
from prefrec.stages.base import RankerStage
from prefrec.stages.language_model import as_ranker
from prefrec.stages.train import align_trainer, sft_trainer
from prefrec.stages.training_rows import is_packed

STEPS = 3
"""Steps of a training to measure. The first one warms up."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a row in each epoch, and before the first one, in which the reference reads it."""

    epoch: float
    before: float


def time_training(stage: RankerStage, rows: int, folder: Path) -> tuple[Pace, Any]:
    """Train on a few of a stage's `rows` from the base model; return the pace, and the model."""
    inputs, section = stage.inputs, stage.config
    taken = min(rows, STEPS * section.global_batch_size)
    few: dict[str, Any] = {"rows": taken, "skip_rows": 0, "epochs": 1.0, "eval_rows": 0, "report_to": "none"}
    # Titles take minutes to encode, and the pace does not depend on the values of their vectors.
    vectors = torch.rand(len(inputs.data.catalogue), 64)
    trainer: Any
    if isinstance(stage, AlignStage):
        few |= {"load_best_model_at_end": False, "trajectories": is_packed(inputs.data, section)}
        if section.drawn_from:  # the ranker that they are drawn from may not be trained yet
            few |= {"negatives_from": "uniform", "miner": None}
        trainer = align_trainer(inputs, section.model_copy(update=few), None, folder, vectors=vectors)
    else:
        trainer = sft_trainer(inputs, section.model_copy(update=few), folder, vectors=vectors)
    steps = _Steps()
    trainer.add_callback(steps)
    start = perf_counter()
    trainer.train()
    return Pace(steps.seconds * steps.count / taken, (steps.times[0] - start) / taken), trainer.model


class _Steps(TrainerCallback):
    """The times when training begins and when each step ends. Nothing is saved."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    @property
    def seconds(self) -> float:
        """Seconds of a step, without the first one if there are several."""
        times = self.times[1:] if self.count > 1 else self.times
        return (times[-1] - times[0]) / (len(times) - 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(perf_counter())
        control.should_save = False


def time_questions(recipe: Recipe, data: PreparedData, model: Any) -> tuple[float, float]:
    """Return the seconds of a question about a candidate set, and of one about all items; 0 without examples."""
    rows = [*(data.validation or data.test)[:SHARED]]
    if not rows:
        return 0.0, 0.0
    if recipe.lora is None:  # trained in float32, and loaded in the recipe's dtype
        cast_layers(model, recipe.model.dtype)
    ranker = as_ranker("timed", model, data, recipe.model, batch_size=recipe.evaluate.batch_size)
    listed = _each(ranker.score, rows)
    if ranker.has_items or recipe.evaluate.full_rows == 0:
        return listed, listed
    return listed, _each(CatalogueRanker(ranker).score, [replace(rows[0], candidates=tuple(data.catalogue.ids))])


def _each(answer: Callable[[Sequence[RankingExample]], object], rows: Sequence[RankingExample]) -> float:
    """Return the seconds in which a row is answered. The first answer warms up."""
    answer(rows[:1])
    start = perf_counter()
    answer(rows)
    return (perf_counter() - start) / len(rows)
