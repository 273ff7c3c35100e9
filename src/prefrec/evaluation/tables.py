"""Evaluations and audits as rich tables, with interval and n for every number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from prefrec.evaluation.audit import Audit
from prefrec.evaluation.intervals import Interval, PairedDifference
from prefrec.evaluation.outcome import Evaluation, Group

HEADLINE_METRICS = ("hr@1", "ndcg@10")
"""Metrics of findings, plots and comparisons, as far as they were measured."""
FULL_METRICS = ("ndcg@10", "hr@10")
"""Columns over the whole catalogue."""
GROUP_ROWS = 20
"""Least number of rows in both groups to print them."""
_LABELS = {"gen_hr@1": "HR@1 generated", "valid_ratio": "valid ratio"}


def metric_label(metric: str) -> str:
    """Return the heading of a metric: `hr@1` → HR@1, `gen_hr@1` → HR@1 generated."""
    return _LABELS.get(metric, metric.upper())


def interval_text(interval: Interval) -> str:
    """Return text such as `0.312 [0.281, 0.343]`, with sign and p for a difference."""
    form = "+.3f" if isinstance(interval, PairedDifference) else ".3f"
    ends = "no interval" if math.isnan(interval.low) else f"{interval.low:{form}}, {interval.high:{form}}"
    p = f" p={interval.p_value:.3f}" if isinstance(interval, PairedDifference) else ""
    # The backslash keeps rich from reading the brackets as markup.
    return f"{interval.mean:{form}} \\[{ends}]{p}"


def evaluation_table(
    evaluation: Evaluation, metrics: Sequence[str] | None = None, full: Evaluation | None = None
) -> Table:
    """Return a table of rankers × metrics, with a last row for a random order.

    The caption has n, chance and the audit's verdict. Metrics of fewer rows have their own n.

    Args:
        evaluation: of lists.
        metrics: columns; None: all that were measured.
        full: over the whole catalogue, as a second block of columns.
    """
    caption = f"n = {evaluation.n} rows of {evaluation.users} users; chance HR@1 {evaluation.chance:.3f}; "
    caption += "95% intervals by bootstrap over users"
    columns = _columns(evaluation, metrics or evaluation.measured, "lists" if full else "")
    if full:
        columns += _columns(full, FULL_METRICS, "all items")
        caption += f"\nall items: n = {full.n} rows of {full.users} users, "
        caption += "the target among all items not taken before"
    if evaluation.audit:
        caption += f"\n{evaluation.audit.verdict}"
    return _table(evaluation.rankers, columns, caption)


def groups_table(evaluation: Evaluation, full: Evaluation | None = None) -> Table | None:
    """Return NDCG@10 of rows with warm and with new targets, or None if no block has `GROUP_ROWS` rows of both."""
    columns = []
    for block, block_name in ((evaluation, "lists" if full else ""), (full, "all items")):
        if block and len(block.groups) == 2 and all(g.n >= GROUP_ROWS for g in block.groups.values()):
            metric = "ndcg@10" if "ndcg@10" in block.measured else block.measured[0]
            for name, group in block.groups.items():
                columns += _columns(group, [metric], f"{block_name} {name}\nn = {group.n}".strip())
    caption = "warm: the target occurs in training interactions; new: it does not"
    return _table(evaluation.rankers, columns, caption) if columns else None


def comparison_table(evaluation: Evaluation, metrics: Sequence[str] | None = None, over: str = "") -> Table:
    """Return paired differences, one row per pair of rankers; the caption names what was ranked (`over`)."""
    shown = list(metrics or dict.fromkeys(c.metric for c in evaluation.comparisons))
    cells: dict[str, dict[str, Interval]] = {metric: {} for metric in shown}
    pairs = []
    for c in evaluation.comparisons:
        pairs.append(f"{c.ranker} − {c.against}")
        cells.setdefault(c.metric, {})[pairs[-1]] = c.difference
    pairs = list(dict.fromkeys(pairs))
    columns = [_Column(metric_label(metric), cells[metric], None, evaluation.n) for metric in shown]
    caption = f"paired differences {f'over {over} ' if over else ''}on the same {evaluation.n} rows; "
    caption += f"{len(pairs) * len(shown)} comparisons ({len(pairs)} pair{'s' * (len(pairs) != 1)}, {len(shown)} "
    caption += f"metric{'s' * (len(shown) != 1)}), with intervals that are not corrected for their number"
    if evaluation.best_reference:
        caption += f"; the best reference row by NDCG@10 is {evaluation.best_reference}"
    return _table(pairs, columns, caption, "ranker − against")


@dataclass(frozen=True)
class _Column:
    """A column of intervals by row, with the value of a random order and the number n of rows."""

    heading: str
    cells: Mapping[str, Interval]
    expected: float | None
    n: int


def _columns(block: Evaluation | Group, metrics: Sequence[str], below: str) -> list[_Column]:
    """Return one column per metric; `below` is the second part of its heading."""
    columns = []
    for m in metrics:
        cells = {ranker: intervals[m] for ranker, intervals in block.metrics.items() if m in intervals}
        columns.append(_Column(f"{metric_label(m)}\n{below}".strip(), cells, block.expected.get(m), block.n))
    return columns


def _table(names: Sequence[str], columns: Sequence[_Column], caption: str, first: str = "ranker") -> Table:
    """Return a table with intervals below means, so that four metrics fit into 80 columns."""
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(first)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for name in names:
        table.add_row(name, *(_cell(c.cells.get(name), c.n) for c in columns))
    if any(c.expected is not None for c in columns):
        table.add_row("chance", *("" if c.expected is None else f"{c.expected:.3f}" for c in columns))
    return table


def _cell(interval: Interval | None, n: int) -> str:
    """Return a cell, with its number of rows if that is not the column's n."""
    if interval is None:
        return ""
    mean, ends = interval_text(interval).split(" ", 1)
    if isinstance(interval, PairedDifference):
        ends, p = ends.rsplit(" ", 1)
        mean = f"{mean} {p}"
    return f"{mean}\n[dim]{ends}[/dim]" + (f" n={interval.n}" if interval.n != n else "")


def audit_table(audit: Audit) -> Table:
    """Return one row per reference or shortcut, with its nearest rival; the caption is the verdict."""
    table = Table("shortcut (learnt from)", caption=audit.verdict, caption_justify="left")
    table.add_column("HR@1", justify="right")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("gain over its rival")
    table.add_column("finding")
    for row in audit.rows:
        name = f"{row.name} ({row.learnt_from})" if row.learnt_from else row.name
        gain = f"{interval_text(row.gain)} over {row.against}" if row.gain else ""
        mark = "[red]LEAK[/red]" if row.leak else "" if row.tried else "not tried"
        finding = "; ".join(filter(None, [mark, row.note]))
        table.add_row(name, interval_text(row.hr) if row.tried else "–", str(row.hr.n), gain, finding)
    return table
