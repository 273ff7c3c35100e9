"""Study: accuracy against training time and memory of each method."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from prefrec.errors import DataError
from prefrec.evaluation import Interval
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run
from prefrec.pipeline.prepare import PrepareStage
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.report.wording import clock, label
from prefrec_lab.studies.alignments import vary_loss
from prefrec_lab.study_tools.measure import measure_runs
from prefrec_lab.study_tools.opened import start_of, took
from prefrec_lab.study_tools.plots import named_points, slug
from prefrec_lab.study_tools.study import Outcome, Study, with_alignments
from prefrec_lab.study_tools.tables import facts_of, results_table

GIB = 2**30


Cost = Callable[[Run, str], float | None]
"""Cost of a model in a run; None if it is not known."""


@dataclass(frozen=True)
class Axis:
    """A cost that accuracy is drawn against: its column, its name, the cost itself, and how a cost is written."""

    column: str
    name: str
    cost: Cost
    text: Callable[[float], str]


def make(base: Recipe, folder: Path) -> Run:
    """Run each loss with a reference pass of its own, so that each stage's time is that of the whole training.

    The alignments of a run otherwise share the reference's log-probabilities, and only the first takes the time.
    """
    recipe = vary_loss(base, PrepareStage(base, folder / "data").prepared())
    for last in range(1, 1 + len(recipe.align)):
        shutil.rmtree(folder / "reference", ignore_errors=True)
        run_recipe(with_alignments(recipe, recipe.align[:last]), folder, until="align")
    return run_recipe(recipe, folder, until="evaluate")


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Show for each trained model what all its stages took, its metrics, and which models no other beats on both.

    Raises:
        DataError: there is no trained language model.
    """
    names = [n for n in runs[0].models if all(training_seconds(run, n) is not None for run in runs)]
    if not names:
        raise DataError(f"{runs[0].folder}: no trained language model whose seconds are known; add sft or align")
    start = start_of(runs[0].recipe)
    measured = measure_runs(runs, start if start in names else None, names)
    costs = [(axis, _costs(runs, names, axis.cost)) for axis in _AXES]
    columns = {axis.column: known for axis, known in costs}
    columns |= {column: _costs(runs, names, cost) for column, cost in _FURTHER.items()}
    settings = {n: {column: known.get(n) for column, known in columns.items()} for n in names}
    drawings, facts = [], []
    for axis, known in costs:
        for quantity in measured.headline if known else []:
            points = {n: (known[n], measured.intervals[n][quantity]) for n in known}
            front, heading = pareto(points), metric_label(quantity)
            file = f"{slug(quantity)}-{axis.name}"
            drawings.append(named_points(file, heading, points, x_label=axis.column, front=front, hint=_HINT))
            best = ", ".join(f"{label(n)} ({axis.text(known[n])})" for n in front)
            facts.append(f"{heading}: not beaten by a model that takes less {axis.name}, in the mean: {best}.")
    title = "Accuracy, seconds of training and memory"
    table = results_table(measured, settings=settings, title=title, first="Model")
    return Outcome([table], drawings, [*facts, *facts_of(measured)], measured.n, measured.users, [_NOTE])


def training_seconds(run: Run, name: str, clock: Literal["seconds", "cpu_seconds"] = "seconds") -> float | None:
    """Return the seconds of a model's own stage and of those before it; None if one is not known."""
    seconds = _of_stages(run, stages_of(run, name), clock)
    return None if seconds is None else sum(seconds)


def training_memory(run: Run, name: str, *, own: bool = False) -> float | None:
    """Return the most memory, in GiB, of a model's own stage and of those before it; None if one is not known.

    Args:
        own: leave out the stages before it.
    """
    peaks = _of_stages(run, [name] if own else stages_of(run, name), "peak_bytes")
    return None if peaks is None else round(max(peaks) / GIB, 2)


def stages_of(run: Run, name: str) -> list[str]:
    """Return the stages that a model continues from, then its own."""
    stages = [name]
    while (align := run.recipe.alignment(stages[0])) and (before := run.recipe.start_of(align)):
        stages.insert(0, before)
    return stages


def _of_stages(
    run: Run, stages: Sequence[str], what: Literal["seconds", "cpu_seconds", "peak_bytes"]
) -> list[float] | None:
    """Return what each of these stages took; None if one is not known."""
    known = [cost for stage in stages if (cost := took(run, stage, what)) is not None]
    return known if len(known) == len(stages) else None


def _costs(runs: Sequence[Run], names: Sequence[str], cost: Cost) -> dict[str, float]:
    """Return model → cost, mean over the runs, without models whose cost a run does not know."""
    costs = {n: [cost(run, n) for run in runs] for n in names}
    return {n: round(float(np.mean(cast(Any, each))), 2) for n, each in costs.items() if None not in each}


def pareto(points: Mapping[str, tuple[float, Interval]]) -> list[str]:
    """Return the points that no other beats in cost (lower or equal) and in the mean (higher); cheapest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1].mean)):
        if not front or points[name][1].mean > points[front[-1]][1].mean:
            front.append(name)
    return front


_AXES = (
    Axis("seconds in all", "time", training_seconds, clock),
    Axis("peak GiB", "memory", training_memory, lambda gib: f"{gib:.1f} GiB"),
)

_FURTHER: dict[str, Cost] = {
    "CPU seconds in all": partial(training_seconds, clock="cpu_seconds"),
    "own seconds": lambda run, name: took(run, name, "seconds"),
    "own CPU seconds": lambda run, name: took(run, name, "cpu_seconds"),
    "own peak GiB": partial(training_memory, own=True),
}
"""Columns beside the axes: CPU time of all stages, and the costs of the model's own stage."""

_HINT = "Blue: no other is both cheaper and better in the mean; the intervals show how much of that may be chance."

_NOTE = (
    "Seconds are wall time of the stages, without evaluation. Memory is the peak of the process (on a GPU: of torch) "
    "in any stage that a model needs. Own: the last stage alone. In runs of other recipes the first of several "
    "alignments on the same rows includes the reference’s time. A dash: not recorded."
)

COST = Study(
    "cost",
    "What does each method cost in training time and memory, and what does it bring?",
    "the loss, as in the study `ablation`. Each computes its reference itself.",
    vary_loss,
    analyse,
    reads_any_run=True,
    make=make,
)
