"""Measurements as tables for people and machines, and as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from prefrec.evaluation import Interval, PairedDifference
from prefrec.pipeline.opened import Run
from prefrec.report.tables import Cell, Grid, logs_notes
from prefrec.report.wording import includes_zero, interval_ends, label, metric_label, number, signed, with_interval
from prefrec_lab.study_tools.measure import Measured, holm
from prefrec_lab.study_tools.study import Table

Settings = Mapping[str, Mapping[str, Any]]
"""Variant → setting (or other known fact) → value."""

ALPHA = 0.05
"""Level of the test that Holm's correction keeps over all comparisons of a quantity."""


def logs_read_note(run: Run) -> list[str]:
    """Return the sentence that says which interactions a run's rankers were trained on; [] if that is not known."""
    evaluation = run.results.evaluation
    return [f"{note}." for note in logs_notes(evaluation.logs)] if evaluation else []


def results_table(
    measured: Measured,
    *,
    settings: Settings | None = None,
    labels: Mapping[str, str] | None = None,
    name: str = "table",
    title: str = "Results",
    first: str = "Variant",
) -> Table:
    """Return one row per variant: its settings, every quantity with its interval, differences to the baseline.

    Args:
        settings: of the variants; a variant without settings has dashes.
        labels: quantity → heading; metrics have their own.
    """
    settings, labels = settings or {}, labels or {}
    set_names = list(dict.fromkeys(k for own in settings.values() for k in own))
    compared = measured.headline if measured.baseline else []
    headings = [labels.get(q, metric_label(q)) for q in measured.quantities]
    against = [f"{labels.get(q, metric_label(q))} − {label(str(measured.baseline))}’s" for q in compared]
    rows = []
    for variant, intervals in measured.intervals.items():
        own = settings.get(variant, {})
        cells = [Cell(_setting(own.get(k))) for k in set_names]
        cells += [interval_cell(intervals.get(q)) for q in measured.quantities]
        gaps = measured.differences.get(variant, {})
        cells += [difference_cell(gaps.get(q)) for q in compared]
        rows.append((label(variant), cells, ""))
    return Table(
        name,
        title,
        first,
        Grid([*set_names, *headings, *against], rows),
        results_frame(measured, settings),
        _note(measured),
    )


def interval_cell(interval: Interval | None) -> Cell:
    """Return a mean with its interval; a dash for None."""
    return Cell(number(interval.mean), (interval_ends(interval),)) if interval else Cell("–")


def difference_cell(difference: PairedDifference | None) -> Cell:
    """Return a difference with its interval, grey if the interval includes 0; a dash for None."""
    if difference is None:
        return Cell("–")
    return Cell(
        signed(difference.mean), (interval_ends(difference),), "weak" if includes_zero(difference) else "best"
    )


def results_frame(measured: Measured, settings: Settings) -> pl.DataFrame:
    """Return one row per variant and quantity.

    It has settings, mean, interval, difference to the baseline, and the mean of each seed.
    """
    set_names = list(dict.fromkeys(k for own in settings.values() for k in own))
    rows = []
    for variant, intervals in measured.intervals.items():
        for quantity, interval in intervals.items():
            gap = measured.differences.get(variant, {}).get(quantity)
            difference = gap.to_json() if gap else {}
            rows.append(
                {
                    "variant": variant,
                    **{k: settings.get(variant, {}).get(k) for k in set_names},
                    "quantity": quantity,
                    **interval.to_json(),
                    "against": measured.baseline if gap else None,
                    "difference": gap.mean if gap else None,
                    "difference_low": difference.get("low"),
                    "difference_high": difference.get("high"),
                    "p_value": difference.get("p_value"),
                    **{f"seed_{i}": mean for i, mean in enumerate(measured.by_seed[variant][quantity])},
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def grouped_table(
    measured: Mapping[str, Measured],
    metric: str,
    *,
    name: str,
    title: str,
    first: str = "Ranker",
    note: str = "",
    group: str = "group",
    variants: Sequence[str] = (),
) -> Table:
    """Return one row per variant, and per group a metric with its difference to the baseline of the group.

    Args:
        measured: group → its measurements (`measure_groups`).
        title: of the table, after the metric.
        group: heading of the groups in the CSV file.
        variants: those that come first, in this order; the others follow as they were measured.
    """
    columns: list[str] = []
    for name_of_group, own in measured.items():
        columns += [f"{name_of_group}, n = {own.n:,}", *([f"− {label(own.baseline)}’s"] if own.baseline else [])]
    rows = []
    for variant in dict.fromkeys([*variants, *(v for own in measured.values() for v in own.intervals)]):
        cells: list[Cell] = []
        for own in measured.values():
            cells.append(interval_cell(own.intervals.get(variant, {}).get(metric)))
            if own.baseline:
                cells.append(difference_cell(own.differences.get(variant, {}).get(metric)))
        rows.append((label(variant), cells, ""))
    heading = f"{metric_label(metric)} {title}"
    return Table(name, heading, first, Grid(columns, rows), stacked_frames(measured, group), note)


def stacked_frames(measured: Mapping[str, Measured], column: str) -> pl.DataFrame:
    """Return the `results_frame` of each group, one below the other; `column` holds the group's name."""
    frames = [results_frame(group, {}).select(pl.lit(n).alias(column), pl.all()) for n, group in measured.items()]
    return pl.concat(frames, how="vertical_relaxed")


def facts_of(
    measured: Measured,
    variants: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    quantities: Sequence[str] | None = None,
) -> list[str]:
    """Return two sentences per quantity: the largest difference to the baseline, and which intervals exclude 0.

    The second also says which differences are left after Holm's correction for the number of these variants.

    Args:
        variants: those that the study is about. Default: all.
        quantities: those to report; None: the headline.
    """
    if measured.baseline is None:
        return []
    sentences: list[str] = []
    for quantity in measured.headline if quantities is None else quantities:
        gaps = {
            v: differences[quantity]
            for v, differences in measured.differences.items()
            if quantity in differences and (variants is None or v in variants)
        }
        if gaps:
            own = measured.intervals[measured.baseline][quantity]
            heading = (labels or {}).get(quantity, metric_label(quantity))
            baseline = f"{label(measured.baseline)} ({with_interval(own)})"
            signs = {v: _signs(measured, v, quantity) for v in gaps}
            sentences += _sentences(heading, baseline, gaps, signs)
    return [sentence.replace("\u00a0", " ") for sentence in sentences]


def _sentences(
    heading: str, baseline: str, gaps: Mapping[str, PairedDifference], signs: Mapping[str, str]
) -> list[str]:
    largest = max(gaps, key=lambda v: abs(gaps[v].mean))
    clear = [f"{label(v)} ({signs[v]})" for v, d in gaps.items() if not includes_zero(d)]
    left = [label(v) for v, p in holm(gaps).items() if p < ALPHA]
    number_clear = f"{len(clear) or 'none'} of {len(gaps)} intervals exclude{'s' * (len(clear) < 2)} 0"
    told = f"{number_clear}: {', '.join(clear)}." if clear else f"{number_clear}."
    if clear and len(gaps) > 1:
        told += f" After Holm’s correction for {len(gaps)} comparisons: {', '.join(left) or 'none'}."
    return [
        f"{heading}: the largest difference from {baseline} is {with_interval(gaps[largest])} ({label(largest)}).",
        f"{heading}: {told}",
    ]


def _signs(measured: Measured, variant: str, quantity: str) -> str:
    """Return "higher" or "lower", and in how many of the seeds."""
    means = measured.by_seed
    gaps = [a - b for a, b in zip(means[variant][quantity], means[str(measured.baseline)][quantity], strict=True)]
    higher = sum(gaps) > 0
    same = sum(gap > 0 if higher else gap < 0 for gap in gaps)
    return ("higher" if higher else "lower") + (f" in {same} of {len(gaps)} seeds" if len(gaps) > 1 else "")


def markdown(table: Table) -> str:
    """Return the table in Markdown, with the small lines beside their numbers."""
    head = [table.first, *table.grid.columns]
    lines = [_row(head), _row(["---"] * len(head))]
    lines += [_row([name, *(" ".join([c.text, *c.small]) for c in cells)]) for name, cells, _ in table.grid.rows]
    return "\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def plain_table(name: str, title: str, first: str, frame: pl.DataFrame, note: str = "") -> Table:
    """Return a frame as a table: its first column names the rows, null is a dash."""
    head, *columns = frame.columns
    rows = [
        (label(str(row[head])), [Cell(_value(row[c])) for c in columns], "") for row in frame.iter_rows(named=True)
    ]
    return Table(name, title, first, Grid(columns, rows), frame, note)


def _note(measured: Measured) -> str:
    seeds = len(next(iter(next(iter(measured.by_seed.values())).values())))
    text = (
        f"Means over {measured.n:,} rows, {measured.users:,} users and {seeds} seed{'s' if seeds > 1 else ''}, "
        "with 95% intervals over users, not over seeds."
    )
    if measured.baseline:
        text += (
            f" Differences from {label(measured.baseline)} are paired and not corrected for the number of "
            "comparisons; the sentences above are."
        )
    return text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\u00a0", " ") for c in cells) + " |"


def _setting(value: Any) -> str:
    """Return a setting as it was given: 0.5, 1, 1,649."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(value: Any) -> str:
    """Return a measured value with all its digits."""
    return number(value) if isinstance(value, float) else _setting(value)
