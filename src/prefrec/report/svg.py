"""Small SVG plots for a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from markupsafe import Markup

from prefrec.evaluation import Evaluation, Interval
from prefrec.report.wording import label, metric_label, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#3a84c9", "#d97a1e", "#a667c4", "#8a8a35", "#2aa1b3", "#b0704a")
"""Colours that are visible on white and on black, without green and red, which mean better and worse."""
INK = "#757b84"
"""Colour of texts and axes, which can be read on white and on black."""
_GREY = "#8b8f97"


def can_plot() -> bool:
    """Return True if matplotlib is installed (extra `plots`)."""
    return find_spec("matplotlib") is not None


def new_figure(width: float = 4.3, height: float = 2.7) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, with one axes: light grid, no frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(color=INK, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def as_image(figure: Figure, alt: str) -> Markup:
    """Return the figure as an `<img>` element that contains matplotlib's SVG, with a text alternative."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefrec"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return Markup('<img class="plot" alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)


def whisker_plot(evaluation: Evaluation, metric: str, colours: Mapping[str, str]) -> Markup:
    """Return a plot of the rankers in table order: a dot for the mean, a line for the 95% interval.

    A dashed line marks the value of a random order.
    """
    shown = {r: of[metric] for r, of in evaluation.metrics.items() if metric in of}
    figure = whisker_figure(shown, colours)
    words = "; ".join(f"{label(r)} {with_interval(i)}" for r, i in shown.items())
    alt = f"{metric_label(metric)}. {metric_label(metric)} with 95% intervals: {words}."
    chance = evaluation.expected.get(metric)
    if chance is not None:
        figure.axes[0].axvline(chance, color=INK, alpha=0.5, linestyle=(0, (3, 3)), linewidth=1)
        alt += f" The dashed line is chance, {chance:.3f}."
    return as_image(figure, alt)


def whisker_figure(shown: Mapping[str, Interval], colours: Mapping[str, str]) -> Figure:
    """Return a figure with a dot and an interval per name, top to bottom; it starts at 0 if no value is below."""
    figure, axes = new_figure(height=0.75 + 0.3 * len(shown))
    for y, (name, value) in enumerate(shown.items()):
        colour = colours.get(name, _GREY)
        if not math.isnan(value.low):
            axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(value.mean, y, "o", color=colour, markersize=6.5)
    axes.set_yticks(range(len(shown)), [label(n) for n in shown], parse_math=False, fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    if all(v.mean >= 0 and not v.low < 0 for v in shown.values()):
        axes.set_xlim(0, 1.04 * max(axes.get_xlim()[1], 1e-9))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure
