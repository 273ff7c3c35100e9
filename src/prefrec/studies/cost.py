"""Study: accuracy against the seconds that each method trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prefrec.evaluation import Interval
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.recipe import PRETRAIN
from prefrec.pipeline.report.wording import clock, label
from prefrec.studies.alignments import settings_of, vary_loss
from prefrec.studies.measure import measure, of_rankers, ranking_values
from prefrec.studies.plots import named_points, slug
from prefrec.studies.runs import Run
from prefrec.studies.study import Outcome, Study
from prefrec.studies.tables import facts_of, results_table


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Each trained model: seconds of all its stages, metrics, and which models no other beats on both."""
    names = [n for n in runs[0].models if all(training_seconds(run, n) is not None for run in runs)]
    predictions = of_rankers(runs, names)
    users = predictions[names[0]][0]["user_id"].to_list()
    start = runs[0].start
    measured = measure(
        ranking_values(predictions, runs[0].recipe.evaluate.ks), users, baseline=start if start in names else None
    )
    seconds = {n: float(np.mean([training_seconds(run, n) or 0.0 for run in runs])) for n in names}
    tokens = settings_of(runs)
    settings = {n: {"seconds in all": round(seconds[n], 1), "tokens": tokens.get(n, {}).get("tokens")} for n in names}
    drawings, facts = [], []
    for quantity in measured.headline:
        points = {n: (seconds[n], measured.intervals[n][quantity]) for n in names}
        front = pareto(points)
        heading = metric_label(quantity)
        hint = "Blue: no other is both faster and better in the mean; the intervals say how much of that is luck."
        drawings.append(named_points(slug(quantity), heading, points, x_label="seconds", front=front, hint=hint))
        told = ", ".join(f"{label(n)} ({clock(seconds[n])})" for n in front)
        facts.append(f"{heading}: not beaten by a faster model, in the mean: {told}.")
    title = "Accuracy and seconds of training"
    table = results_table(measured, settings=settings, title=title, first="Model")
    return Outcome([table], drawings, [*facts, *facts_of(measured)], measured.n, measured.users, [_NOTE])


def training_seconds(run: Run, name: str) -> float | None:
    """Seconds of a model's own stage and of those before it; None where one is not known."""
    before = [s for s in (PRETRAIN, run.start) if s in run.stages]
    own = [*before, name] if name not in before else before[: before.index(name) + 1]
    times = [run.seconds(s) for s in dict.fromkeys(own)]
    known = [t for t in times if t is not None]
    return sum(known) if len(known) == len(times) else None


def pareto(points: Mapping[str, tuple[float, Interval]]) -> list[str]:
    """The points that no other beats on both counts: fewer seconds (or as many) and a higher mean; fastest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1].mean)):
        if not front or points[name][1].mean > points[front[-1]][1].mean:
            front.append(name)
    return front


_NOTE = (
    "Seconds are wall time of the stages on this machine, evaluation left out; a stage that was interrupted counts "
    "all its parts. Other work on the machine is in them. Memory is not recorded."
)

COST = Study(
    "cost",
    "What does each method cost in training time, and what does it bring?",
    "the loss, as in the study `ablation`, whose runs it shares.",
    vary_loss,
    analyse,
    reads_any_run=True,
)
