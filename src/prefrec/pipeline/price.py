"""Estimate the time that language models take in a run: a few measured steps and questions, times their number.

Baselines, blends, other rankers and the encoding of titles are not counted.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prefrec import processes
from prefrec.console import quiet, quiet_libraries
from prefrec.data import PreparedData
from prefrec.errors import PrefrecError
from prefrec.lm.names import is_downloaded
from prefrec.pipeline.best import ROWS, slow_rows
from prefrec.pipeline.checks import available_rows
from prefrec.pipeline.plan import Plan, stage_names
from prefrec.rankers.blend import BlendConfig
from prefrec.recipe import Recipe, reached
from prefrec.report.wording import clock
from prefrec.sections import ALIGN, RANKERS
from prefrec.stages.alignment import AlignStage
from prefrec.stages.base import RankerStage
from prefrec.stages.blend import RERANK_ROWS
from prefrec.stages.sft import SFTRefitStage

if TYPE_CHECKING:
    from prefrec.pipeline.timing import Pace

DOUBT = 1.5
"""Factor by which a time may be wrong: lengths of histories vary, and so does what else the machine does."""
WORTH = 50
"""Least steps of a run that is worth measuring."""


@dataclass(frozen=True)
class Price:
    """Name → seconds of the trainings that are due, and of the questions of the evaluation."""

    costs: dict[str, float]

    @property
    def seconds(self) -> float:
        """Return the sum of the costs."""
        return sum(self.costs.values())

    def __str__(self) -> str:
        named = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in self.costs.items())
        span = f"{minutes(self.seconds / DOUBT)} to {minutes(self.seconds * DOUBT)}"
        return f"Language models will take {span} on this machine, by measured steps: {named}"


def minutes(seconds: float) -> str:
    """Return `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 60:
        return clock(seconds)
    whole = round(seconds / 60)
    return f"{whole} min" if whole < 60 else clock(60 * whole)


def price(plan: Plan, until: str = "report") -> Price | None:
    """Return what the language models that are due up to `until` will take.

    For each training, a few steps run on the base model, in a folder of the run that is then deleted. With many
    processes, all must call this function.

    Returns:
        The price; None if fewer than `WORTH` steps are due, or a model is not downloaded or cannot be trained here.
    """
    measured = until in ("evaluate", "report")
    recipe, data, is_open = plan.recipe, plan.inputs.data, plan.is_open
    plan = plan.at_most
    wanted = reached(recipe.needs, *stage_names(recipe, RANKERS if measured else until))
    models = [name for name in recipe.lm_rankers if name in wanted]
    due = [stage for stage in plan.stages(models) if plan.why(stage)]
    rows = {stage.label: _rows(recipe, stage) for stage in due}
    steps = [stage.config.epochs * rows[stage.label] / stage.config.global_batch_size for stage in due]
    if sum(steps) < WORTH:
        return None
    from prefrec.pipeline.timing import time_questions, time_training  # here, because it needs torch

    paces: dict[str, Pace] = {}
    model: Any = None
    try:
        if not is_downloaded(recipe.model.name):
            return None
        with quiet(), quiet_libraries(), TemporaryDirectory(prefix=".timing-", dir=plan.folder) as own:
            folder = Path(processes.from_first(own))
            for stage in due:
                if stage.name not in paces:  # a refit is as fast as the first training
                    model = None
                    gc.collect()  # one model at a time
                    paces[stage.name], model = time_training(stage, rows[stage.label], folder / stage.name)
            listed, full = time_questions(recipe, data, model)
    except (PrefrecError, OSError):  # an estimate must not end a run, which will say what is wrong
        return None
    finally:
        model = None
        gc.collect()
    costs: dict[str, float] = {}
    for stage in due:
        label = f"{stage.label} (if it serves)" if is_open and stage.first else stage.label
        costs[label] = _training(stage, rows[stage.label], paces[stage.name], listed, full)
    return Price(costs | {"evaluate": _evaluation(recipe, data, listed, full)} if measured else costs)


def _rows(recipe: Recipe, stage: RankerStage) -> int:
    """Return the number of rows that a stage trains on."""
    inputs = stage.learnt if isinstance(stage, SFTRefitStage) else stage.inputs
    name = f"{ALIGN}.{stage.name}" if isinstance(stage, AlignStage) else stage.name
    count = available_rows(recipe, inputs.data)[name] - stage.config.skip_rows
    return count if stage.config.rows is None else min(count, stage.config.rows)


def _training(stage: RankerStage, rows: int, pace: Pace, listed: float, full: float) -> float:
    """Return the seconds of a training, with its negatives, reference and validation."""
    section: Any = stage.config
    seconds = rows * (pace.before + section.epochs * pace.epoch)
    evaluations = section.epochs
    if isinstance(stage, AlignStage):
        seconds += rows * full if section.negatives_from == "reference" else 0.0
        if not section.load_best_model_at_end:
            evaluations *= rows / section.global_batch_size / section.eval_steps
    if stage.first is None:  # a refit has no validation examples
        seconds += evaluations * min(section.eval_rows, len(stage.inputs.data.validation)) * listed
    return seconds


def _evaluation(recipe: Recipe, data: PreparedData, listed: float, full: float) -> float:
    """Return the seconds of questions to language models: under test, on validation examples, and by blends."""
    section, is_slow = recipe.evaluate, recipe.model.answers != "items"
    rows, validation = len(data.examples(section.split, section.rows)), len(data.validation)
    test = 0 if section.full_rows == 0 else rows
    ranked = test if section.full_rows is None or not is_slow else min(test, section.full_rows)
    compared = min(validation, slow_rows(recipe) if is_slow else ROWS)
    seconds = len(recipe.lm_rankers) * (rows * listed + (ranked + compared) * full)
    for blend in recipe.rankers:
        if isinstance(blend, BlendConfig):
            asked = [part for part in blend.parts if part in recipe.lm_rankers]
            learnt = min(validation, RERANK_ROWS) if is_slow else validation
            seconds += len(asked) * (test + compared + learnt) * full
    return seconds
