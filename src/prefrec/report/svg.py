"""Small plots that sit in a page: no window, no pyplot, text in the page's font and colour."""

from __future__ import annotations

import html
import io
import re

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#3a84c9", "#d97a1e", "#2f9e68", "#a667c4", "#c9556b", "#8a8a35")
"""Colours that stand out on white and on black."""

INK = "#010203"
"""Stands for the colour of the page's text, which the page decides."""

WIDTH, HEIGHT = 4.3, 2.7
"""Of a plot, in inches; the page scales it to its column."""


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one axes: light grid, no frame."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.4)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, alt: str, name: str) -> Markup:
    """The figure as an `<svg>` element with a text alternative.

    Args:
        alt: what the figure shows, in words.
        name: goes before every id, so that several figures live in one page.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefrec"}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#)|(url\(#)', lambda m: f"{m.group()}{name}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    opening = f'<svg class="plot" role="img" aria-label="{html.escape(alt)}"'
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', lambda m: f"{opening}{m.group(1)}", text, count=1)
    drawn = text.replace(INK, "currentColor").strip()
    return Markup(drawn)  # nosec B704  # matplotlib has escaped the texts in it
