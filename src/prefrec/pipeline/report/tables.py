"""Metrics, differences, audit and stages as rows for the template: plain strings and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefrec.evaluation import METRICS, Audit, AuditRow, Evaluation, PairedDifference, metrics_for
from prefrec.evaluation.preferences import Preferences
from prefrec.pipeline.report.contents import RunContents, Stage
from prefrec.pipeline.report.wording import (
    clock,
    includes_zero,
    interval_ends,
    label,
    metric_label,
    number,
    signed,
    with_interval,
)


@dataclass(frozen=True)
class Cell:
    """A number, the small lines below it, and how it is set (`best`, `weak`, `leak` or "")."""

    text: str
    small: tuple[str, ...] = ()
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: `columns` beside the row's name, and (name, cells, style) rows."""

    columns: list[str]
    rows: list[tuple[str, list[Cell], str]]


def metrics_grid(evaluation: Evaluation, chance: dict[str, float]) -> Grid:
    """Rankers × metrics, the highest of each column `best`, and a last row for chance."""
    metrics = _measured(evaluation)
    best = {m: max(of[m].mean for of in evaluation.metrics.values() if m in of) for m in metrics}

    def cell(ranker: str, metric: str) -> Cell:
        value = evaluation.metrics[ranker].get(metric)
        if value is None:
            return Cell("–")
        return Cell(number(value.mean), (interval_ends(value),), "best" if value.mean == best[metric] else "")

    rows = [(label(r), [Cell(f"{evaluation.n:,}"), *(cell(r, m) for m in metrics)], "") for r in evaluation.rankers]
    if any(m in chance for m in metrics):
        shown = [Cell(number(chance[m]) if m in chance else "–") for m in metrics]
        rows.append(("chance", [Cell(""), *shown], "chance"))
    return Grid(["n", *map(metric_label, metrics)], rows)


def chance_of(run: RunContents) -> dict[str, float]:
    """Metric → its expectation for a ranker without an opinion: every rank of 1..C equally likely.

    Only HR@1 where the lengths C of the lists under test are not known.
    """
    evaluation = run.evaluation
    if evaluation is None:
        return {}
    found = {"hr@1": evaluation.chance}
    if run.predictions is None or run.predictions.is_empty():
        return found
    of_first = run.predictions.filter(run.predictions["ranker"] == run.predictions["ranker"][0])
    sizes, times = np.unique(of_first["candidates"].list.len().to_numpy(), return_counts=True)
    ks = [int(m.split("@")[1]) for m in _measured(evaluation) if m.startswith(("hr@", "ndcg@"))]
    for name, metric in (METRICS | metrics_for(ks)).items():
        values = [metric(np.arange(1, c + 1)).mean() for c in sizes]
        found[name] = float(np.average(values, weights=times))
    return found


def differences_grid(evaluation: Evaluation) -> Grid:
    """Pairs × metrics: the paired difference, its interval, and what it shows in a word."""
    metrics = list(dict.fromkeys(c.metric for c in evaluation.comparisons))
    of_pair: dict[tuple[str, str], dict[str, PairedDifference]] = {}
    for c in evaluation.comparisons:
        of_pair.setdefault((c.ranker, c.against), {})[c.metric] = c.difference
    rows = [
        (
            f"{label(ranker)} − {label(against)}",
            [_difference_cell(found[m]) if m in found else Cell("–") for m in metrics],
            "",
        )
        for (ranker, against), found in of_pair.items()
    ]
    return Grid([metric_label(m) for m in metrics], rows)


def preference_grids(found: Preferences) -> tuple[Grid, Grid]:
    """Scores × metrics of preferences, the highest of each column `best`, and their paired differences."""
    metrics = list(dict.fromkeys(m for of in found.metrics.values() for m in of))
    best = {m: max(of[m].mean for of in found.metrics.values()) for m in metrics}
    rows = [
        (
            name,
            [Cell(number(i.mean), (interval_ends(i),), "best" if i.mean == best[m] else "") for m, i in of.items()],
        )
        for name, of in found.metrics.items()
    ]
    of_pair: dict[str, list[Cell]] = {}
    for d in found.differences:
        of_pair.setdefault(f"{d.scores} − {d.against}", []).append(_difference_cell(d.difference))
    columns = [m.upper() for m in metrics]
    return Grid(columns, [(*row, "") for row in rows]), Grid(columns, [(*row, "") for row in of_pair.items()])


def _difference_cell(difference: PairedDifference) -> Cell:
    none = includes_zero(difference)
    shown = "none shown" if none else "higher" if difference.mean > 0 else "lower"
    p = "" if math.isnan(difference.p_value) else f", p {difference.p_value:.3f}"
    return Cell(signed(difference.mean), (interval_ends(difference), f"{shown}{p}"), "weak" if none else "best")


def audit_grid(audit: Audit) -> Grid:
    """References, then shortcuts with the rival each was held against."""
    return Grid(["HR@1", "gain over its rival", "learnt from", "finding"], [_audit_row(r) for r in audit.rows])


def _audit_row(row: AuditRow) -> tuple[str, list[Cell], str]:
    gain = Cell("–")
    if row.gain:
        gain = Cell(
            signed(row.gain.mean), (f"[{signed(row.gain.low)}, {signed(row.gain.high)}]", f"over {row.against}")
        )
    finding = Cell(row.finding, (row.note,) if row.note else (), "leak" if row.leak else "")
    return (
        row.name,
        [Cell(number(row.hr.mean), (interval_ends(row.hr),)), gain, Cell(row.learnt_from or "–"), finding],
        "leak" if row.leak else "",
    )


def stages_grid(stages: list[Stage]) -> Grid:
    """One row a stage: settings, time, and its loss at the beginning and the end."""
    columns = ["loss", "β", "negatives", "learning rate", "steps", "time", "training loss", "validation loss"]
    return Grid(columns, [(label(s.name), _stage_cells(s), "") for s in stages])


def _stage_cells(stage: Stage) -> list[Cell]:
    aligned = stage.kind == "align"
    settings = [
        _setting(stage.setting("loss") if aligned else "−log π"),
        *(_setting(stage.setting(k) if aligned else None) for k in ("beta", "num_negatives")),
        _setting(stage.setting("learning_rate")),
    ]
    steps = max((int(e["step"]) for e in stage.log if isinstance(e.get("step"), int | float)), default=0)
    seconds = stage.state.get("seconds")
    time = Cell(clock(seconds) if stage.state.get("finished") else "not finished")
    return [
        *settings,
        Cell(f"{steps:,}" if steps else "–"),
        time,
        _course(stage, "loss"),
        _course(stage, "eval_loss"),
    ]


def _setting(value: Any) -> Cell:
    return Cell("–" if value is None else f"{value:g}" if isinstance(value, float) else str(value))


def _course(stage: Stage, key: str) -> Cell:
    values = [value for _, value in stage.points(key)]
    return Cell(f"{number(values[0])} → {number(values[-1])}" if values else "–")


def audit_verdict(run: RunContents) -> str:
    """The audit's sentence, "" where none was made."""
    return run.evaluation.audit.verdict if run.evaluation and run.evaluation.audit else ""


def whisker_text(evaluation: Evaluation, metric: str) -> str:
    """The plot of a metric in words, for those who cannot see it."""
    parts = [f"{label(r)} {with_interval(of[metric])}" for r, of in evaluation.metrics.items() if metric in of]
    return f"{metric_label(metric)} with 95% intervals: {'; '.join(parts)}."


def _measured(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(m for of in evaluation.metrics.values() for m in of))
