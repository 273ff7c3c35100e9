"""A dot and its interval for each ranker."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from markupsafe import Markup
from matplotlib.figure import Figure

from prefrec.evaluation import Evaluation, Interval
from prefrec.report.svg import INK, PALETTE, new_figure, to_svg
from prefrec.report.tables import whisker_text
from prefrec.report.wording import label, metric_label

_GREY = "#8b8f97"


def whisker_plot(evaluation: Evaluation, metric: str, trained: Collection[str], chance: float | None) -> Markup:
    """Rankers from top to bottom as in the table, a dot for the mean and a line for the 95% interval.

    Args:
        trained: rankers set in colour; the others are grey.
        chance: drawn as a dashed line.
    """
    shown = {r: of[metric] for r, of in evaluation.metrics.items() if metric in of}
    figure = whisker_figure(shown, trained)
    if chance is not None:
        figure.axes[0].axvline(chance, color=INK, alpha=0.5, linestyle=(0, (3, 3)), linewidth=1)
    line = "" if chance is None else f" The dashed line is chance, {chance:.3f}."
    slug = "".join(c if c.isalnum() else "-" for c in metric)
    return to_svg(figure, f"{metric_label(metric)}. {whisker_text(evaluation, metric)}{line}", f"w-{slug}")


def whisker_figure(shown: Mapping[str, Interval], coloured: Collection[str]) -> Figure:
    """Names from top to bottom, a dot for each mean and a line for its interval; from 0 where none lies below."""
    figure, axes = new_figure(height=0.75 + 0.3 * len(shown))
    for place, (name, value) in enumerate(shown.items()):
        colour = PALETTE[0] if name in coloured else _GREY
        if not math.isnan(value.low):
            axes.plot([value.low, value.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(value.mean, place, "o", color=colour, markersize=6.5)
    axes.set_yticks(range(len(shown)), [label(n) for n in shown], parse_math=False, fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    if all(v.mean >= 0 and not v.low < 0 for v in shown.values()):
        axes.set_xlim(0, 1.04 * max(axes.get_xlim()[1], 1e-9))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure
