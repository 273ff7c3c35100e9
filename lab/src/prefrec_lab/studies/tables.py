"""What was measured, as tables for people and machines and as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from prefrec.evaluation import Interval, PairedDifference
from prefrec.report.tables import Cell, Grid
from prefrec.report.wording import (
    includes_zero,
    interval_ends,
    label,
    metric_label,
    number,
    signed,
    with_interval,
)
from prefrec_lab.studies.measure import Measured
from prefrec_lab.studies.study import Table

Settings = Mapping[str, Mapping[str, Any]]
"""Variant → what was set (or found) for it → value."""


def results_table(
    measured: Measured,
    *,
    settings: Settings | None = None,
    labels: Mapping[str, str] | None = None,
    name: str = "table",
    title: str = "Results",
    first: str = "Variant",
) -> Table:
    """One row a variant: its settings, every quantity with its interval, and differences to the baseline.

    Args:
        measured: what was measured.
        settings: of the variants; variants that are not in it have dashes.
        labels: quantity → how it is headed; metrics head themselves.
        name: of the CSV file.
        title: of the table.
        first: what the variants are.
    """
    settings, labels = settings or {}, labels or {}
    set_names = list(dict.fromkeys(k for of in settings.values() for k in of))
    compared = measured.headline if measured.baseline else []
    headings = [labels.get(q, metric_label(q)) for q in measured.quantities]
    against = [f"{labels.get(q, metric_label(q))} − {label(str(measured.baseline))}’s" for q in compared]
    rows = []
    for variant, of in measured.intervals.items():
        known = settings.get(variant, {})
        cells = [Cell(_setting(known.get(k))) for k in set_names]
        cells += [interval_cell(of[q]) if q in of else Cell("–") for q in measured.quantities]
        gaps = measured.differences.get(variant, {})
        cells += [difference_cell(gaps[q]) if q in gaps else Cell("–") for q in compared]
        rows.append((label(variant), cells, ""))
    return Table(
        name,
        title,
        first,
        Grid([*set_names, *headings, *against], rows),
        results_frame(measured, settings),
        _note(measured),
    )


def interval_cell(interval: Interval) -> Cell:
    """A mean with its interval."""
    return Cell(number(interval.mean), (interval_ends(interval),))


def difference_cell(difference: PairedDifference) -> Cell:
    """A difference with its interval; grey where that includes 0."""
    none = includes_zero(difference)
    return Cell(signed(difference.mean), (interval_ends(difference),), "weak" if none else "best")


def results_frame(measured: Measured, settings: Settings) -> pl.DataFrame:
    """One row a variant and quantity: settings, mean, interval, difference to the baseline, mean of each seed."""
    set_names = list(dict.fromkeys(k for of in settings.values() for k in of))
    rows = []
    for variant, of in measured.intervals.items():
        for quantity, interval in of.items():
            gap = measured.differences.get(variant, {}).get(quantity)
            seeds = measured.by_seed[variant][quantity]
            rows.append(
                {
                    "variant": variant,
                    **{k: settings.get(variant, {}).get(k) for k in set_names},
                    "quantity": quantity,
                    **interval.to_json(),
                    "against": measured.baseline if gap else None,
                    "difference": gap.mean if gap else None,
                    "difference_low": gap.to_json()["low"] if gap else None,
                    "difference_high": gap.to_json()["high"] if gap else None,
                    "p_value": gap.to_json()["p_value"] if gap else None,
                    **{f"seed_{i}": mean for i, mean in enumerate(seeds)},
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def facts_of(
    measured: Measured,
    variants: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    quantities: Sequence[str] | None = None,
) -> list[str]:
    """Two sentences a quantity: the largest difference to the baseline, and which intervals exclude 0.

    Args:
        measured: what was measured.
        variants: those that the study is about; None: all.
        labels: as for `results_table`.
        quantities: those that are told; None: the headline.
    """
    found: list[str] = []
    for quantity in (measured.headline if quantities is None else quantities) if measured.baseline else []:
        gaps = {
            v: of[quantity]
            for v, of in measured.differences.items()
            if quantity in of and (variants is None or v in variants)
        }
        if gaps:
            own = measured.intervals[str(measured.baseline)][quantity]
            heading = (labels or {}).get(quantity, metric_label(quantity))
            found += _sentences(heading, f"{label(str(measured.baseline))} ({with_interval(own)})", gaps)
    return [sentence.replace("\u00a0", " ") for sentence in found]


def _sentences(heading: str, baseline: str, gaps: Mapping[str, PairedDifference]) -> list[str]:
    largest = max(gaps, key=lambda v: abs(gaps[v].mean))
    clear = [f"{label(v)} ({'higher' if d.mean > 0 else 'lower'})" for v, d in gaps.items() if not includes_zero(d)]
    return [
        f"{heading}: the largest difference from {baseline} is {with_interval(gaps[largest])} ({label(largest)}).",
        f"{heading}: of {len(gaps)} intervals of such differences "
        + (f"{len(clear)} exclude{'s' * (len(clear) == 1)} 0: {', '.join(clear)}." if clear else "none excludes 0."),
    ]


def markdown(table: Table) -> str:
    """The table in Markdown, small lines beside the number they belong to."""
    head = [table.first, *table.grid.columns]
    lines = [_row(head), _row(["---"] * len(head))]
    lines += [_row([name, *(" ".join([c.text, *c.small]) for c in cells)]) for name, cells, _ in table.grid.rows]
    return "\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def plain_table(name: str, title: str, first: str, frame: pl.DataFrame, note: str = "") -> Table:
    """A frame as a table: its first column names the rows, null is a dash."""
    head, *columns = frame.columns
    rows = [
        (label(str(row[head])), [Cell(_found(row[c])) for c in columns], "") for row in frame.iter_rows(named=True)
    ]
    return Table(name, title, first, Grid(columns, rows), frame, note)


def _note(measured: Measured) -> str:
    seeds = len(next(iter(next(iter(measured.by_seed.values())).values())))
    text = (
        f"Means over {measured.n:,} rows of {measured.users:,} users and {seeds} seed{'s' if seeds > 1 else ''}; "
        "in brackets 95% intervals by bootstrap over users, which do not cover the choice of seed."
    )
    if measured.baseline:
        text += (
            f" Differences to {label(measured.baseline)} are on the same rows; none is corrected for the number "
            "of comparisons."
        )
    return text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\u00a0", " ") for c in cells) + " |"


def _setting(value: Any) -> str:
    """A setting as it was given: 0.5, 1, 1,649."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _found(value: Any) -> str:
    """A measured value, with all its digits."""
    return number(value) if isinstance(value, float) else _setting(value)
