"""Study: accuracy against the time and memory that each method's training takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from prefrec.errors import DataError
from prefrec.evaluation import Interval
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.opened import Run
from prefrec.report.wording import clock, label
from prefrec_lab.studies.alignments import settings_of, vary_loss
from prefrec_lab.studies.measure import measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import named_points, slug
from prefrec_lab.studies.study import Outcome, Study
from prefrec_lab.studies.tables import facts_of, results_table

GIB = 2**30


@dataclass(frozen=True)
class Axis:
    """A cost that accuracy is drawn against: its column, its name, what a model costs in a run, a cost in words."""

    column: str
    name: str
    of: Callable[[Run, str], float | None]
    told: Callable[[float], str]


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Each trained model: what all its stages took, metrics, and which models no other beats on both.

    Raises:
        DataError: there is no trained language model.
    """
    names = [n for n in runs[0].models if all(training_seconds(run, n) is not None for run in runs)]
    if not names:
        raise DataError(f"{runs[0].folder}: no trained language model whose seconds are known; add sft or align")
    predictions = of_rankers(runs, names)
    users = predictions[names[0]][0]["user_id"].to_list()
    start = runs[0].start
    measured = measure(
        ranking_values(predictions, runs[0].recipe.evaluate.ks), users, baseline=start if start in names else None
    )
    costs = [(axis, _costs(runs, names, axis.of)) for axis in _AXES]
    columns = {axis.column: found for axis, found in costs}
    columns |= {column: _costs(runs, names, of) for column, of in _FURTHER.items()}
    tokens = settings_of(runs)
    settings = {
        n: {column: found.get(n) for column, found in columns.items()} | {"tokens": tokens.get(n, {}).get("tokens")}
        for n in names
    }
    drawings, facts = [], []
    for axis, found in costs:
        for quantity in measured.headline if found else []:
            points = {n: (found[n], measured.intervals[n][quantity]) for n in found}
            front, heading = pareto(points), metric_label(quantity)
            place = f"{slug(quantity)}-{axis.name}"
            drawings.append(named_points(place, heading, points, x_label=axis.column, front=front, hint=_HINT))
            told = ", ".join(f"{label(n)} ({axis.told(found[n])})" for n in front)
            facts.append(f"{heading}: not beaten by a model that takes less {axis.name}, in the mean: {told}.")
    title = "Accuracy, seconds of training and memory"
    table = results_table(measured, settings=settings, title=title, first="Model")
    return Outcome([table], drawings, [*facts, *facts_of(measured)], measured.n, measured.users, [_NOTE])


def training_seconds(run: Run, name: str) -> float | None:
    """Seconds of a model's own stage and of those before it; None where one is not known."""
    found = _of_stages(run, name, "seconds")
    return None if found is None else sum(found)


def training_cpu_seconds(run: Run, name: str) -> float | None:
    """As `training_seconds`, of CPU time."""
    found = _of_stages(run, name, "cpu_seconds")
    return None if found is None else sum(found)


def training_memory(run: Run, name: str) -> float | None:
    """The most memory that a model's own stage or one before it took, in GiB; None where one is not known."""
    found = _of_stages(run, name, "peak_bytes")
    return None if found is None else round(max(found) / GIB, 2)


def own_memory(run: Run, name: str) -> float | None:
    """The most memory that a model's own stage took, in GiB; None where it is not known."""
    found = run.took(name, "peak_bytes")
    return None if found is None else round(found / GIB, 2)


def stages_of(run: Run, name: str) -> list[str]:
    """A model's own stage after those that it goes on from."""
    before = [s for s in (run.start,) if s in run.stages]
    return list(dict.fromkeys([*before, name] if name not in before else before[: before.index(name) + 1]))


def _of_stages(run: Run, name: str, what: Literal["seconds", "cpu_seconds", "peak_bytes"]) -> list[float] | None:
    """What each of a model's stages took; None where one is not known."""
    found = [run.took(stage, what) for stage in stages_of(run, name)]
    known = [took for took in found if took is not None]
    return known if len(known) == len(found) else None


def _costs(runs: Sequence[Run], names: Sequence[str], of: Callable[[Run, str], float | None]) -> dict[str, float]:
    """Model → cost, mean over the runs; without the models for which a run does not know it."""
    found = {n: [of(run, n) for run in runs] for n in names}
    return {n: round(float(np.mean(cast(Any, each))), 2) for n, each in found.items() if None not in each}


def pareto(points: Mapping[str, tuple[float, Interval]]) -> list[str]:
    """The points that no other beats on both counts: a lower cost (or the same) and a higher mean; cheapest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1].mean)):
        if not front or points[name][1].mean > points[front[-1]][1].mean:
            front.append(name)
    return front


_AXES = (
    Axis("seconds in all", "time", training_seconds, clock),
    Axis("peak GiB", "memory", training_memory, lambda gib: f"{gib:.1f} GiB"),
)

_FURTHER: dict[str, Callable[[Run, str], float | None]] = {
    "CPU seconds in all": training_cpu_seconds,
    "own seconds": lambda run, name: run.took(name, "seconds"),
    "own CPU seconds": lambda run, name: run.took(name, "cpu_seconds"),
    "own peak GiB": own_memory,
}
"""Columns beside the axes: CPU time of all stages, and what the model's own stage took."""

_HINT = "Blue: no other is both cheaper and better in the mean; the intervals say how much of that is luck."

_NOTE = (
    "Seconds are wall time of the stages on this machine, evaluation left out; a stage that was interrupted counts "
    "all its parts. Other work on the machine is in them, in CPU seconds hardly. Memory is the most that the "
    "process (on a GPU: torch) held during any stage that a model needs; on a CPU it counts what an earlier stage of "
    "the same process has not given back. Own: of the model’s last stage alone. Models of runs that did not note it "
    "have dashes."
)

COST = Study(
    "cost",
    "What does each method cost in training time and memory, and what does it bring?",
    "the loss, as in the study `ablation`, whose runs it shares.",
    vary_loss,
    analyse,
    reads_any_run=True,
)
