"""Metrics, differences, audit and stages as rows for the template: plain strings and flags."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefrec.evaluation import Audit, Evaluation, Group, Interval, PairedDifference
from prefrec.evaluation.preferences import Preferences
from prefrec.evaluation.tables import FULL_METRICS, HEADLINE_METRICS
from prefrec.report.wording import clock, includes_zero, interval_ends, label, metric_label, number, signed
from prefrec.runs.contents import Stage


@dataclass(frozen=True)
class Cell:
    """A number, the small lines below it, and its style (`best`, `weak`, `leak` or "")."""

    text: str
    small: tuple[str, ...] = ()
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: `columns` beside the row's name, and (name, cells, style) rows."""

    columns: list[str]
    rows: list[tuple[str, list[Cell], str]]


def measured(metrics: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the names of all metrics of a mapping from ranker to metrics, in order."""
    return list(dict.fromkeys(m for own in metrics.values() for m in own))


def metrics_grid(evaluation: Evaluation, full: Evaluation | None = None) -> Grid:
    """Return rankers × metrics, the highest of each column `best`, and a last row for a random order.

    Metrics over the whole catalogue (`full`) are a second block of columns.
    """
    columns = _columns(evaluation, measured(evaluation.metrics), "")
    return _grid(evaluation.rankers, columns + (_columns(full, FULL_METRICS, ", all items") if full else []))


def groups_grid(evaluation: Evaluation, full: Evaluation | None = None) -> Grid | None:
    """Return the headline metrics of rows with warm and with new targets; None if all rows are of one kind."""
    columns = []
    for block, wanted, where in ((evaluation, HEADLINE_METRICS, ""), (full, FULL_METRICS, ", all items")):
        if block and len(block.groups) > 1:
            known = measured(block.metrics)
            metrics = [m for m in wanted if m in known] or known[:1]
            for name, group in block.groups.items():
                columns += _columns(group, metrics, f"{where}, {name} targets")
    return _grid(evaluation.rankers, columns) if columns else None


Column = tuple[str, dict[str, Cell], str | None]
"""Heading, ranker → cell, and the value of a random order (None: not known)."""


def chance_of(block: Evaluation | Group) -> dict[str, float]:
    """Return metric → its expectation for a random order; earlier versions of prefrec recorded only HR@1."""
    return block.expected or ({"hr@1": block.chance} if isinstance(block, Evaluation) else {})


def _columns(block: Evaluation | Group, metrics: Sequence[str], where: str) -> list[Column]:
    """Return a column with n, and one per metric."""
    columns: list[Column] = [(f"n{where}", dict.fromkeys(block.metrics, Cell(f"{block.n:,}")), "")]
    for metric in metrics:
        values = {r: own[metric] for r, own in block.metrics.items() if metric in own}
        best = max((i.mean for i in values.values()), default=0.0)
        expected = chance_of(block).get(metric)
        cells = {r: _interval_cell(i, best) for r, i in values.items()}
        columns.append((f"{metric_label(metric)}{where}", cells, None if expected is None else number(expected)))
    return columns


def _grid(rankers: Sequence[str], columns: Sequence[Column]) -> Grid:
    rows = [(label(r), [cells.get(r, Cell("–")) for _, cells, _ in columns], "") for r in rankers]
    if any(expected for *_, expected in columns):
        rows.append(("chance", [Cell("–" if e is None else e) for *_, e in columns], "chance"))
    return Grid([heading for heading, *_ in columns], rows)


def differences_grid(evaluation: Evaluation) -> Grid:
    """Return pairs × metrics: the paired difference, its interval, and the finding in a word."""
    metrics = list(dict.fromkeys(c.metric for c in evaluation.comparisons))
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    for c in evaluation.comparisons:
        pairs.setdefault((c.ranker, c.against), {})[c.metric] = _difference_cell(c.difference)
    cells = {pair: [own.get(m, Cell("–")) for m in metrics] for pair, own in pairs.items()}
    rows = [(f"{label(pair[0])} − {label(pair[1])}", row, "") for pair, row in cells.items()]
    return Grid([metric_label(m) for m in metrics], rows)


def comparisons_note(evaluation: Evaluation) -> str:
    """Return the number of comparisons, the best reference row, and how to read the intervals."""
    pairs = len({(c.ranker, c.against) for c in evaluation.comparisons})
    best = evaluation.best_reference
    named = f" The best reference row, by NDCG@10, is {label(best)}." if best else ""
    return (
        f"{len(evaluation.comparisons)} comparisons ({pairs} pair{'s' * (pairs != 1)}, all metrics) on the same "
        f"{evaluation.n:,} rows, with 95% intervals and p-values by bootstrap over users.{named} Bold: the interval "
        "excludes 0. Grey, “none shown”: it includes 0. No interval is corrected for the number of comparisons."
    )


def preference_grids(preferences: Preferences) -> tuple[Grid, Grid]:
    """Return scores × metrics of preferences, the highest of each column `best`, and their paired differences."""
    metrics = measured(preferences.metrics)
    best = {m: max(own[m].mean for own in preferences.metrics.values()) for m in metrics}
    rows = [(n, [_interval_cell(i, best[m]) for m, i in own.items()], "") for n, own in preferences.metrics.items()]
    pairs: dict[str, list[Cell]] = {}
    for d in preferences.differences:
        pairs.setdefault(f"{d.scores} − {d.against}", []).append(_difference_cell(d.difference))
    columns = [m.upper() for m in metrics]
    return Grid(columns, rows), Grid(columns, [(name, cells, "") for name, cells in pairs.items()])


def _interval_cell(interval: Interval, best: float | None = None) -> Cell:
    return Cell(number(interval.mean), (interval_ends(interval),), "best" if interval.mean == best else "")


def _difference_cell(difference: PairedDifference) -> Cell:
    none = includes_zero(difference)
    shown = "none shown" if none else "higher" if difference.mean > 0 else "lower"
    p = "" if math.isnan(difference.p_value) else f", p {difference.p_value:.3f}"
    return Cell(signed(difference.mean), (interval_ends(difference), f"{shown}{p}"), "weak" if none else "best")


def audit_grid(audit: Audit) -> Grid:
    """Return the references, then the shortcuts, each with the rival that it was compared with."""
    rows = []
    for row in audit.rows:
        gain, style = Cell("–"), "leak" if row.leak else ""
        if row.gain:
            ends = f"[{signed(row.gain.low)}, {signed(row.gain.high)}]"
            gain = Cell(signed(row.gain.mean), (ends, f"over {row.against}"))
        finding = Cell(row.finding, (row.note,) if row.note else (), style)
        rows.append((row.name, [_interval_cell(row.hr), gain, Cell(row.learnt_from or "–"), finding], style))
    return Grid(["HR@1", "gain over its rival", "learnt from", "finding"], rows)


def stages_grid(stages: list[Stage]) -> Grid:
    """Return a row per stage: settings, time, and the loss at the beginning and the end."""
    columns = ["loss", "β", "negatives", "learning rate", "steps", "time", "training loss", "validation loss"]
    return Grid(columns, [(label(s.name), [Cell(text) for text in _stage_texts(s)], "") for s in stages])


def _stage_texts(stage: Stage) -> list[str]:
    names = ("loss", "beta", "num_negatives", "learning_rate")
    loss, beta, negatives, rate = (stage.setting(name) for name in names)
    if stage.kind != "align":
        loss, beta, negatives = "−log π", None, None
    steps = max((int(e["step"]) for e in stage.log if isinstance(e.get("step"), int | float)), default=0)
    return [
        *map(_setting, (loss, beta, negatives, rate)),
        f"{steps:,}" if steps else "–",
        clock(stage.state.get("seconds")) if stage.state.get("finished") else "not finished",
        _course(stage, "loss"),
        _course(stage, "eval_loss"),
    ]


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _course(stage: Stage, key: str) -> str:
    values = [value for _, value in stage.points(key)]
    return f"{number(values[0])} → {number(values[-1])}" if values else "–"
