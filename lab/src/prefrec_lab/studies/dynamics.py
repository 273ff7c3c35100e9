"""Study: rewards and log-probabilities during training with DPO and S-DPO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe
from prefrec.report.curves import start_loss
from prefrec.report.tables import Grid
from prefrec.report.wording import label, number, signed, with_interval
from prefrec.sections import AlignSection
from prefrec.stages.training_rows import alignment_rows
from prefrec_lab.studies.alignments import variant
from prefrec_lab.study_tools.measure import Values, measure, ranker_predictions, users_of
from prefrec_lab.study_tools.opened import start_of
from prefrec_lab.study_tools.plots import Series, lines
from prefrec_lab.study_tools.study import Drawing, Outcome, Study, Table, varied_alignment, with_alignments
from prefrec_lab.study_tools.tables import difference_cell, facts_of, plain_table, results_frame, results_table

EVAL_ROWS = 48
"""Validation rows per point of the curves, unless the recipe sets more."""

POINTS = 8
"""Points per curve."""

PAIRS, S_DPO = "dpo-pairs-watched", "s-dpo-watched"
"""The two alignments that differ in the loss alone."""

LABELS = {
    "chosen": "log-prob of the chosen",
    "rejected": "log-prob of the rejected, their mean",
    "margin": "chosen − rejected",
}


@dataclass(frozen=True)
class Curve:
    """A quantity of the validation rows over training: its key in the log, title and hint."""

    key: str
    title: str
    hint: str = ""


CURVES = (
    Curve("loss", "Validation loss", "Losses of other N start elsewhere: at ln(1 + N)."),
    Curve("rewards/chosen", "Reward of the chosen title", "β × log-ratio to the reference; 0 before training."),
    Curve("logps/chosen", "Log-probability of the chosen title"),
    Curve("rewards/margins", "Reward margin", "Chosen minus the mean of the rejected."),
)


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with DPO with one negative, DPO with all of S-DPO's negatives, and S-DPO.

    All are evaluated on validation rows while they train.
    """
    one = varied_alignment(base)
    rows = len(alignment_rows(data, one, base.seed))
    steps = math.ceil(rows * one.epochs / one.global_batch_size)
    watched = {"eval_rows": one.eval_rows or EVAL_ROWS, "eval_steps": max(1, steps // POINTS)}
    dpo = variant(one, "dpo-watched", loss="dpo", num_negatives=1, **watched)
    pairs = variant(one, PAIRS, loss="dpo", **watched)
    return with_alignments(base, [dpo, pairs, variant(one, S_DPO, **watched)])


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Draw curves on validation rows from the logs, and measure the trained models on the test rows."""
    sections = runs[0].recipe.align
    start = start_of(runs[0].recipe)
    names = [n for n in (start, *(a.name for a in sections)) if n in runs[0].recipe.lm_rankers]
    if start not in names:
        raise DataError(f"{runs[0].folder}: {start} was not evaluated; set evaluate.zero_shot to true")
    predictions = ranker_predictions(runs, names)
    measured = measure(log_probs(predictions), users_of(predictions), baseline=start)
    curves = {a.name: curve_frame(runs, a) for a in sections}
    watched = _curves_table(curves)
    facts = facts_of(measured, labels=LABELS)
    title = f"Log-probabilities on {measured.n:,} {runs[0].recipe.evaluate.split} rows, after training"
    tables = [results_table(measured, labels=LABELS, title=title)]
    if {PAIRS, S_DPO} <= set(names):
        table, told = _loss_alone({n: predictions[n] for n in (PAIRS, S_DPO)})
        tables, facts = [*tables, table], [*told, *facts]
    facts += [s for n, f in curves.items() for s in _course(n, f)]
    return Outcome([*tables, *watched], _drawings(curves), facts, measured.n, measured.users, [_NOTE])


def _loss_alone(predictions: Mapping[str, Sequence[pl.DataFrame]]) -> tuple[Table, list[str]]:
    """Return the paired difference S-DPO − DPO with as many negatives: a table, and sentences."""
    measured = measure(log_probs(predictions), users_of(predictions), baseline=PAIRS)
    differences = measured.differences[S_DPO]
    grid = Grid(["S-DPO − DPO"], [(LABELS[q], [difference_cell(d)], "") for q, d in differences.items()])
    title = "S-DPO − DPO with the same number of negatives"
    facts = [f"{title}, {LABELS[q]}: {with_interval(d)}." for q, d in differences.items()]
    facts = [f.replace("\u00a0", " ") for f in facts]
    return Table("loss-alone", title, "Quantity", grid, results_frame(measured, {}), _LOSS_NOTE), facts


def log_probs(predictions: Mapping[str, Sequence[pl.DataFrame]]) -> Values:
    """Return log-probabilities [S, B] of the target, of the other candidates (their mean), and their difference."""
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, frames in predictions.items():
        pairs = [_chosen_and_rejected(frame) for frame in frames]
        chosen, rejected = (np.stack([p[i] for p in pairs]) for i in (0, 1))
        values[name] = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
    return values


def curve_frame(runs: Sequence[Run], section: AlignSection) -> pl.DataFrame:
    """Return one row per point of the validation curve: step, and each quantity of `CURVES`, mean over the seeds.

    Step 0, where policy and reference are equal, is not in the log. It follows from the loss's own start and from
    reward = β (log π − log π_ref), if the loss has a reference.
    """
    rows = [_points(run, section) for run in runs]
    steps = [s for s in rows[0] if all(s in r for r in rows)]
    averaged = [
        {
            "step": round(s),
            **{c.key: float(np.mean([r[s][c.key] for r in rows])) for c in CURVES if c.key in rows[0][s]},
        }
        for s in steps
    ]
    return pl.DataFrame(averaged)


def _points(run: Run, section: AlignSection) -> dict[float, dict[str, float]]:
    """Return step → quantity → value, of one run."""
    stage = run.stages.get(section.name)
    if stage is None:
        return {}
    points: dict[float, dict[str, float]] = {}
    for curve in CURVES:
        for step, value in stage.points(f"eval_{curve.key}"):
            points.setdefault(step, {})[curve.key] = value
    start = start_loss(stage)
    if points and start is not None:
        first = next(iter(points.values()))
        reference = first["logps/chosen"] - first["rewards/chosen"] / section.beta
        zero = {"loss": start, "rewards/chosen": 0.0, "logps/chosen": reference, "rewards/margins": 0.0}
        points = {0.0: zero} | points
    return points


def _chosen_and_rejected(frame: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chosen, rejected = [], []
    for candidates, target, scores in frame.select("candidates", "target", "scores").iter_rows():
        position = candidates.index(target)
        chosen.append(scores[position])
        rejected.append(np.mean([*scores[:position], *scores[position + 1 :]]))
    return np.array(chosen), np.array(rejected)


def _course(name: str, frame: pl.DataFrame) -> list[str]:
    """Return how the chosen title's reward and log-probability changed from the first point to the last."""
    if frame.is_empty():
        return []
    first, last = frame.row(0, named=True), frame.row(-1, named=True)
    parts = [
        f"{title} {number(first[key])} at step {first['step']:.0f}, {number(last[key])} at step {last['step']:.0f} "
        f"({signed(last[key] - first[key])})"
        for key, title in (("rewards/chosen", "reward"), ("logps/chosen", "log-probability"))
    ]
    return [f"{label(name)}, the chosen title on validation rows: {'; '.join(parts)}."]


def _curves_table(curves: Mapping[str, pl.DataFrame]) -> list[Table]:
    """Return all curves in one table; none if no stage was watched."""
    named = [f.select(pl.lit(n).alias("variant"), pl.all()) for n, f in curves.items() if not f.is_empty()]
    if not named:
        return []
    frame = pl.concat(named, how="diagonal")
    return [plain_table("curves", "Validation rows, over training", "Variant", frame, _CURVES_NOTE)]


def _drawings(curves: Mapping[str, pl.DataFrame]) -> list[Drawing]:
    drawn = []
    for curve in CURVES:
        series = [
            Series(name, frame["step"].to_list(), frame[curve.key].to_list())
            for name, frame in curves.items()
            if not frame.is_empty()
        ]
        if series:
            name = curve.key.replace("/", "-")
            drawn.append(lines(name, curve.title, series, x_label="optimiser step", hint=curve.hint))
    return drawn


_LOSS_NOTE = (
    "Paired, with 95% intervals over users. Reward = β × (log π − log π_ref), so a difference of rewards is β times "
    "that of log-probabilities."
)
_CURVES_NOTE = "Means over the validation rows and seeds, from the training log, which has no values per row."
_NOTE = (
    "The paper's first version says that S-DPO keeps the chosen title's likelihood from falling as under DPO, the "
    "later one that it gives better rewards. The curves check both claims."
)

DYNAMICS = Study(
    "dynamics",
    "What happens to the reward and the log-probability of the chosen title while DPO and S-DPO train?",
    "the loss at the same number of negatives (DPO on exploded pairs, S-DPO), and DPO with one negative; the SFT "
    "model, rows, β and steps are the same.",
    vary,
    analyse,
    reads_any_run=True,
)
