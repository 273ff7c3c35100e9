"""Measurements of some rows at a time: a column for each group, differences within the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.evaluation.tables import metric_label
from prefrec.report.tables import Cell, Grid
from prefrec.report.wording import label
from prefrec_lab.studies.measure import Measured, Values, measure
from prefrec_lab.studies.study import Table
from prefrec_lab.studies.tables import difference_cell, interval_cell, results_frame

Groups = Mapping[str, NDArray[np.bool_]]
"""Name of a group → which rows are in it [B]."""


def groups_of(names: Sequence[str], order: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Groups from the name of each row's group [B], in this order; those without rows are left out."""
    found = {g: np.array([n == g for n in names], dtype=bool) for g in order}
    return {g: own for g, own in found.items() if own.any()}


def measure_groups(values: Values, users: Sequence[str], groups: Groups, baseline: str | None) -> dict[str, Measured]:
    """`measure` for the rows of each group that has any."""
    found = {}
    for group, own in groups.items():
        if own.any():
            part = {n: {m: v[:, own] for m, v in of.items()} for n, of in values.items()}
            found[group] = measure(part, [u for u, o in zip(users, own, strict=True) if o], baseline=baseline)
    return found


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
    """A row a variant, and for each group (`measure_groups`) a metric with its difference to the baseline there.

    Args:
        measured: group → what was measured in it.
        metric: the one that is shown.
        name: of the CSV file.
        title: of the table, after the metric.
        first: what the variants are.
        note: below the table.
        group: what the groups are, as a column of the CSV file.
        variants: those that come first, in this order; the others follow as they were measured.
    """
    columns: list[str] = []
    for of_group, of in measured.items():
        columns += [f"{of_group}, n = {of.n:,}", *([f"− {label(of.baseline)}’s"] if of.baseline else [])]
    rows = []
    for variant in dict.fromkeys([*variants, *(v for of in measured.values() for v in of.intervals)]):
        cells: list[Cell] = []
        for of in measured.values():
            gap = of.differences.get(variant, {}).get(metric)
            interval = of.intervals.get(variant, {}).get(metric)
            cells.append(interval_cell(interval) if interval else Cell("–"))
            if of.baseline:
                cells.append(difference_cell(gap) if gap else Cell("–"))
        rows.append((label(variant), cells, ""))
    frame = pl.concat(
        [results_frame(of, {}).select(pl.lit(g).alias(group), pl.all()) for g, of in measured.items()],
        how="vertical_relaxed",
    )
    return Table(name, f"{metric_label(metric)} {title}", first, Grid(columns, rows), frame, note)
