"""Metrics, differences, audit and stages as rows for the template: plain strings and flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefrec.evaluation import Audit, AuditRow, Evaluation, Group, PairedDifference
from prefrec.evaluation.preferences import Preferences
from prefrec.evaluation.tables import FULL_METRICS, HEADLINE_METRICS
from prefrec.report.wording import (
    clock,
    includes_zero,
    interval_ends,
    label,
    metric_label,
    number,
    signed,
    with_interval,
)
from prefrec.runs.contents import RunContents, Stage


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


def metrics_grid(evaluation: Evaluation, full: Evaluation | None = None) -> Grid:
    """Return rankers × metrics, the highest of each column `best`, and a last row for a random order.

    Args:
        evaluation: of lists.
        full: over the whole catalogue, as a second block of columns.
    """
    blocks = [(evaluation, _measured(evaluation), "")]
    if full:
        blocks.append((full, list(FULL_METRICS), ", all items"))
    columns = [column for block, metrics, where in blocks for column in _columns(block, metrics, where)]
    return _grid(evaluation.rankers, columns)


def groups_grid(evaluation: Evaluation, full: Evaluation | None = None) -> Grid | None:
    """Return the headline metrics of rows with warm and with new targets; None where all rows are of one kind."""
    columns = []
    for block, wanted, where in ((evaluation, HEADLINE_METRICS, ""), (full, FULL_METRICS, ", all items")):
        if block and len(block.groups) > 1:
            metrics = [m for m in wanted if m in _measured(block)] or _measured(block)[:1]
            for name, group in block.groups.items():
                columns += _columns(group, metrics, f"{where}, {name} targets")
    return _grid(evaluation.rankers, columns) if columns else None


Column = tuple[str, dict[str, Cell], str | None]
"""Heading, ranker → cell, and what a random order reaches (None: not known)."""


def chance_of(block: Evaluation | Group) -> dict[str, float]:
    """Return metric → its expectation for a random order; HR@1 alone of what an earlier prefrec measured."""
    return block.expected or ({"hr@1": block.chance} if isinstance(block, Evaluation) else {})


def _columns(block: Evaluation | Group, metrics: Sequence[str], where: str) -> list[Column]:
    """Return a column with n, and one per metric."""
    ns: Column = (f"n{where}", dict.fromkeys(block.metrics, Cell(f"{block.n:,}")), "")
    return [ns, *(_metric_column(block, m, where) for m in metrics)]


def _metric_column(block: Evaluation | Group, metric: str, where: str) -> Column:
    found = {r: of[metric] for r, of in block.metrics.items() if metric in of}
    best = max((i.mean for i in found.values()), default=0.0)
    cells = {r: Cell(number(i.mean), (interval_ends(i),), "best" if i.mean == best else "") for r, i in found.items()}
    expected = chance_of(block).get(metric)
    return f"{metric_label(metric)}{where}", cells, None if expected is None else number(expected)


def _grid(rankers: Sequence[str], columns: Sequence[Column]) -> Grid:
    rows = [(label(r), [cells.get(r, Cell("–")) for _, cells, _ in columns], "") for r in rankers]
    if any(expected for *_, expected in columns):
        rows.append(("chance", [Cell("–" if e is None else e) for *_, e in columns], "chance"))
    return Grid([heading for heading, *_ in columns], rows)


def differences_grid(evaluation: Evaluation) -> Grid:
    """Return pairs × metrics: the paired difference, its interval, and what it shows in a word."""
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


def comparisons_note(evaluation: Evaluation) -> str:
    """Return how many comparisons there are, with which reference row, and what their intervals do not say."""
    pairs = len({(c.ranker, c.against) for c in evaluation.comparisons})
    best = evaluation.best_reference
    told = f" The best reference row, by NDCG@10, is {label(best)}." if best else ""
    return (
        f"{len(evaluation.comparisons)} comparisons ({pairs} pair{'s' * (pairs != 1)}, all metrics) on the same "
        f"{evaluation.n:,} rows, "
        f"with 95% intervals and p-values by bootstrap over users.{told} Bold: the interval excludes 0. Grey, “none "
        "shown”: it includes 0. Each interval stands for itself; none is corrected for the number of comparisons."
    )


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
