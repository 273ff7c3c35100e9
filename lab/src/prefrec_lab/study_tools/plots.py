"""Plots of studies: dots with intervals, lines with intervals, points with names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from prefrec.evaluation import Interval
from prefrec.report.svg import INK, PALETTE, new_figure, whisker_figure
from prefrec.report.wording import label, metric_label, number, with_interval
from prefrec_lab.study_tools.measure import Measured
from prefrec_lab.study_tools.study import Drawing

_WIDTH, _HEIGHT = 5.6, 3.4
_FEW_TICKS = 8
"""Most whole numbers on an axis that have a tick each."""


@dataclass(frozen=True)
class Series:
    """A line: its name, and at each x a value with an interval (Interval) or without (float)."""

    name: str
    x: Sequence[float]
    y: Sequence[Interval | float]


def dots(measured: Measured, quantity: str, varied: Collection[str], heading: str | None = None) -> Drawing:
    """Return a plot with a dot and an interval per variant; the varied ones are in colour."""
    shown = {v: intervals[quantity] for v, intervals in measured.intervals.items() if quantity in intervals}
    return interval_dots(slug(quantity), heading or metric_label(quantity), shown, varied)


def interval_dots(
    name: str, title: str, shown: Mapping[str, Interval], coloured: Collection[str], hint: str = ""
) -> Drawing:
    """Return a plot with a dot and its interval for each name, from top to bottom."""
    figure = whisker_figure(shown, dict.fromkeys(coloured, PALETTE[0]))
    figure.axes[0].set_xlabel(title, fontsize=9, color=INK)
    words = "; ".join(f"{label(n)} {with_interval(i)}" for n, i in shown.items())
    return Drawing(name, title, figure, f"{title} with 95% intervals: {words}.", hint or "Lines: 95% intervals.")


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    log: bool = False,
    hint: str = "",
    level: Mapping[str, float] | None = None,
) -> Drawing:
    """Return a plot of lines through points, with intervals where there are any.

    Args:
        level: name → height of a dashed line, such as chance.
    """
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    words = []
    for i, one in enumerate(_apart(series, log)):
        _draw(axes, one, PALETTE[i % len(PALETTE)])
    for one in series:
        points = (f"{_number(y)} at {x:g}" for x, y in zip(one.x, one.y, strict=True))
        words.append(f"{label(one.name)}: {', '.join(points)}")
    for text, height in (level or {}).items():
        axes.axhline(height, color=INK, alpha=0.5, linestyle=(0, (3, 3)), linewidth=1)
        words.append(f"{text}: {number(height)}, dashed")
    ticks = sorted({x for one in series for x in one.x})
    if log:
        axes.set_xscale("log")
    if log or (len(ticks) <= _FEW_TICKS and all(x == int(x) for x in ticks)):
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    _name_axes(axes, x_label, title)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8.5)
    return Drawing(name, title, figure, f"{title}, by {x_label}. {'; '.join(words)}.", hint)


def named_points(
    name: str,
    title: str,
    points: Mapping[str, tuple[float, Interval]],
    *,
    x_label: str,
    front: Collection[str] = (),
    hint: str = "",
) -> Drawing:
    """Return a plot of a named point with an interval per variant; a line joins those of the front."""
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    for variant, (x, y) in points.items():
        colour = PALETTE[0] if variant in front else "#8b8f97"
        _whisker(axes, x, y, colour)
        axes.plot(x, y.mean, "o", color=colour, markersize=6)
        axes.annotate(label(variant), (x, y.mean), xytext=(6, 4), textcoords="offset points", fontsize=8.5, color=INK)
    best = sorted((points[v][0], points[v][1].mean) for v in front)
    axes.plot([x for x, _ in best], [y for _, y in best], color=PALETTE[0], alpha=0.5, linewidth=1.2)
    _name_axes(axes, x_label, title)
    axes.margins(x=0.15)
    words = "; ".join(f"{label(v)} {with_interval(y)} at {x:g}" for v, (x, y) in points.items())
    return Drawing(name, title, figure, f"{title}, by {x_label}. {words}.", hint)


def _apart(series: Sequence[Series], log: bool) -> list[Series]:
    """Return the series, moved a little along the axis if intervals would hide each other."""
    positions = [x for one in series for x in one.x]
    if not any(isinstance(y, Interval) for one in series for y in one.y):
        return list(series)
    spread = max(positions) / min(positions) if log else max(positions) - min(positions)
    moved = []
    for i, one in enumerate(series):
        shift = 0.012 * (i - (len(series) - 1) / 2)
        moved.append(replace(one, x=[x * spread**shift if log else x + spread * shift for x in one.x]))
    return moved


def _draw(axes: Axes, one: Series, colour: str) -> None:
    means = [y.mean if isinstance(y, Interval) else y for y in one.y]
    axes.plot(one.x, means, "o-", color=colour, linewidth=1.6, markersize=4.5, label=label(one.name))
    for x, y in zip(one.x, one.y, strict=True):
        if isinstance(y, Interval):
            _whisker(axes, x, y, colour)


def _name_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)


def _whisker(axes: Axes, x: float, y: Interval, colour: str) -> None:
    if not math.isnan(y.low):
        axes.plot([x, x], [y.low, y.high], color=colour, linewidth=1.8, alpha=0.6, solid_capstyle="round")


def _number(value: Interval | float) -> str:
    return with_interval(value) if isinstance(value, Interval) else number(value)


def slug(text: str) -> str:
    """Return a text as the name of a file."""
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
