"""Measurements by group: a column per group of rows, with differences within the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prefrec.evaluation.tables import metric_label
from prefrec.report.tables import Cell, Grid
from prefrec.report.wording import label
from prefrec_lab.studies.measure import Measured, Values, measure
from prefrec_lab.studies.study import Table
from prefrec_lab.studies.tables import difference_cell, interval_cell, stacked_frames

Groups = Mapping[str, NDArray[np.bool_]]
"""Name of a group → which rows [B] belong to it."""


def groups_of(names: Sequence[str], order: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return groups from the name of each row's group [B], in this order, without groups that have no rows."""
    groups = {g: np.array([n == g for n in names], dtype=bool) for g in order}
    return {g: own for g, own in groups.items() if own.any()}


def measure_groups(values: Values, users: Sequence[str], groups: Groups, baseline: str | None) -> dict[str, Measured]:
    """Return the result of `measure` for the rows of each group that has any."""
    measured = {}
    for group, own in groups.items():
        if own.any():
            part = {n: {m: v[:, own] for m, v in quantities.items()} for n, quantities in values.items()}
            measured[group] = measure(part, [u for u, o in zip(users, own, strict=True) if o], baseline=baseline)
    return measured


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
            gap = own.differences.get(variant, {}).get(metric)
            interval = own.intervals.get(variant, {}).get(metric)
            cells.append(interval_cell(interval) if interval else Cell("–"))
            if own.baseline:
                cells.append(difference_cell(gap) if gap else Cell("–"))
        rows.append((label(variant), cells, ""))
    heading = f"{metric_label(metric)} {title}"
    return Table(name, heading, first, Grid(columns, rows), stacked_frames(measured, group), note)
