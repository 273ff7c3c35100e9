"""Evaluations and audits as rich tables: interval and n beside every number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from prefrec.evaluation.audit import Audit
from prefrec.evaluation.evaluate import Evaluation
from prefrec.evaluation.intervals import Interval, PairedDifference

_LABELS = {"gen_hr@1": "HR@1 generated", "valid_ratio": "valid ratio"}


def metric_label(metric: str) -> str:
    """How a metric is headed: `hr@1` → HR@1, `gen_hr@1` → HR@1 generated."""
    return _LABELS.get(metric, metric.upper())


def interval_text(interval: Interval, digits: int = 3) -> str:
    """`0.312 [0.281, 0.343]`; with its sign and p for a difference."""
    signed = isinstance(interval, PairedDifference)
    form = f"{'+' if signed else ''}.{digits}f"
    ends = "no interval" if math.isnan(interval.low) else f"{interval.low:{form}}, {interval.high:{form}}"
    p = f" p={interval.p_value:.3f}" if isinstance(interval, PairedDifference) else ""
    return f"{interval.mean:{form}} \\[{ends}]{p}"


def _cell(interval: Interval | None, n: int) -> str:
    """A cell of a table whose numbers are of n rows, unless the cell says otherwise."""
    if interval is None:
        return ""
    return interval_text(interval) + (f" n={interval.n}" if interval.n != n else "")


def evaluation_table(evaluation: Evaluation, metrics: Sequence[str] | None = None) -> Table:
    """Rankers × metrics. The caption holds n, chance and the audit's verdict; metrics of fewer rows have their n."""
    shown = list(metrics or dict.fromkeys(m for of in evaluation.metrics.values() for m in of))
    caption = f"n = {evaluation.n} rows of {evaluation.users} users; chance HR@1 {evaluation.chance:.3f}; "
    caption += "95% intervals by bootstrap over users"
    if evaluation.audit:
        caption += f"\n{evaluation.audit.verdict}"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("ranker", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in shown:
        table.add_column(metric_label(metric), justify="right")
    for name, of_ranker in evaluation.metrics.items():
        cells = [_cell(of_ranker.get(m), evaluation.n) for m in shown]
        table.add_row(name, str(evaluation.n), *cells)
    return table


def comparison_table(evaluation: Evaluation, metrics: Sequence[str] | None = None) -> Table:
    """Paired differences, one row a pair of rankers."""
    shown = list(metrics or dict.fromkeys(c.metric for c in evaluation.comparisons))
    table = Table(caption=f"paired differences on the same {evaluation.n} rows", caption_justify="left")
    table.add_column("ranker − against", no_wrap=True)
    for metric in shown:
        table.add_column(metric_label(metric), justify="right")
    for pair in dict.fromkeys((c.ranker, c.against) for c in evaluation.comparisons):
        of_pair = {c.metric: c.difference for c in evaluation.comparisons if (c.ranker, c.against) == pair}
        table.add_row(" − ".join(pair), *(_cell(of_pair.get(m), evaluation.n) for m in shown))
    return table


def audit_table(audit: Audit) -> Table:
    """One row a reference or shortcut, with the rival it was held against. The caption is the verdict."""
    table = Table(caption=audit.verdict, caption_justify="left")
    table.add_column("shortcut (learnt from)")
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
