"""Draw differences with their intervals, as small SVG files that are the same on each machine.

`scripts/experiments_page.py` draws the pictures of its pages with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NUMBER = r"([+\-−]?\d+(?:\.\d+)?)"
VALUE = re.compile(rf"{NUMBER} \[{NUMBER},\s*{NUMBER}\]")
"""A mean with the ends of its interval, as tables show it."""
WIDTH, ROW, LINE, SIDE = 560, 40, 18, 8
INK, QUIET, SHADE = "#1d2529", "#5b676c", "#dcebf3"
FINDINGS = {
    "above": ("#00796b", "significantly above 0"),
    "below": ("#b3372b", "significantly below 0"),
    "equivalent": ("#1f6db3", "equivalent"),
    "open": ("#8a949b", "open"),
    "": ("#3c474d", "not tested"),
}
"""Finding by a declared rule, "" without one → its colour, and its words in the legend."""
MAX_LABEL = 50
"""Characters of a label that fit beside the value; a longer one has a line of its own."""


@dataclass(frozen=True)
class Difference:
    """A difference, its interval, the text that its cell has, the finding (a key of `FINDINGS`), and its margin.

    Within ± its margin it counts as equivalent. 0: it has none of its own.
    """

    label: str
    mean: float
    low: float
    high: float
    text: str
    finding: str = ""
    margin: float = 0.0


def parsed(label: str, cell: str, finding: str = "") -> Difference | None:
    """Return the difference that a cell of a table holds; None if it holds none.

    A cell with ✱ is significant by the rule of its page. Other findings are `finding`, if it is one.
    """
    found = VALUE.match(cell.replace("\u00a0", " "))
    if not found:
        return None
    mean, low, high = (float(number.replace("−", "-")) for number in found.groups())
    if "✱" in cell:
        finding = "above" if mean > 0 else "below"
    return Difference(label, mean, low, high, cell, finding if finding in FINDINGS else "")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, 0 among them if it is between, at most about `most`."""
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def picture(
    title: str,
    groups: Sequence[tuple[str, Sequence[Difference]]],
    note: str = "",
    metric: str = "",
    margin: float | None = None,
) -> str:
    """Return the SVG of groups of differences on one axis, coloured by their findings, with a legend.

    Args:
        title: at the top, with at most about 70 letters.
        groups: name and differences of each group.
        note: a line below the title.
        metric: what the axis shows.
        margin: differences within it count as equivalent; it is shaded, as are the margins of single differences.
    """
    every = [d for _, differences in groups for d in differences]
    low, high = min(0.0, *(d.low for d in every)), max(0.0, *(d.high for d in every))
    room = 0.03 * (high - low)
    low, high = low - room, high + room

    def x(value: float) -> float:
        return SIDE + (WIDTH - 2 * SIDE) * (value - low) / (high - low)

    top = 32 + LINE * bool(note)
    bottom = top + sum(28 * bool(name) + sum(map(_height, differences)) for name, differences in groups)
    found = [finding for finding in FINDINGS if any(d.finding == finding for d in every)]
    height = bottom + 30 + LINE * (bool(metric) + 1)
    told = "; ".join(f"{d.label} {d.text}" for d in every)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(title)}: {escape(told)}." font-family="sans-serif" font-size="13" '
        f'fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(SIDE, 20, title, bold=True),
    ]
    if note:
        parts.append(_text(SIDE, 20 + LINE, note, colour=QUIET))
    if margin is not None:
        left, right = x(max(-margin, low)), x(min(margin, high))
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{bottom - top}" fill="{SHADE}"/>'
        )
    marks = ticks(low, high)
    digits = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    for mark in marks:
        is_zero = abs(mark) < 1e-12
        parts.append(f'<path d="M{x(mark):.1f} {top} V{bottom}" stroke="{INK if is_zero else "#dfe5e7"}"/>')
        number = "0" if is_zero else f"{mark:+.{digits}f}".replace("-", "−")
        middle = min(max(x(mark), 26.0), WIDTH - 26.0)
        parts.append(_text(middle, bottom + 18, number, anchor="middle", colour=QUIET))
    if metric:
        parts.append(_text(WIDTH / 2, bottom + 18 + LINE, metric, anchor="middle", colour=QUIET))
    shade = f"shaded: ±{margin:g}" if margin is not None else "shaded: what counts as equivalent"
    is_shaded = margin is not None or any(d.margin for d in every)
    parts.append(_legend(found, shade if is_shaded else "", bottom + 18 + LINE * (bool(metric) + 1)))
    y = top
    for name, differences in groups:
        if name:
            parts.append(_text(SIDE, y + 20, name, bold=True, halo=True))
            y += 28
        for d in differences:
            colour, _ = FINDINGS[d.finding]
            parts.append(_text(SIDE, y + 16, d.label, halo=True))
            y += _height(d) - ROW
            if d.margin:
                left, right = x(max(-d.margin, low)), x(min(d.margin, high))
                place = f'x="{left:.1f}" y="{y + 22}" width="{right - left:.1f}" height="12"'
                parts.append(f'<rect {place} fill="{SHADE}"/>')
            parts += [
                _text(WIDTH - SIDE, y + 16, d.text, anchor="end", colour=QUIET, halo=True),
                f'<path d="M{x(d.low):.1f} {y + 28} H{x(d.high):.1f}" stroke="{colour}" stroke-width="3"/>',
                f'<circle cx="{x(d.mean):.1f}" cy="{y + 28}" r="4.5" fill="{colour}"/>',
            ]
            y += ROW
    return "\n".join([*parts, "</svg>", ""])


def _legend(found: Sequence[str], shade: str, y: float) -> str:
    """Return the line that says what the colours mean, and the shade if there is one."""
    spans = [f'<tspan fill="{FINDINGS[f][0]}">● </tspan><tspan>{FINDINGS[f][1]}   </tspan>' for f in found]
    if shade:
        spans.append(f"<tspan>{shade}</tspan>")
    return f'<text x="{SIDE:.1f}" y="{y:.1f}" fill="{QUIET}" xml:space="preserve">{"".join(spans)}</text>'


def _height(d: Difference) -> int:
    """Return the height of a difference in the picture."""
    return ROW + LINE * (len(d.label) > MAX_LABEL)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = INK,
    bold: bool = False,
    halo: bool = False,
) -> str:
    """Return a text; a halo keeps it readable over the lines of the grid."""
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += f' fill="{colour}"' if colour != INK else ""
    more += ' font-weight="bold"' if bold else ""
    more += ' stroke="#ffffff" stroke-width="4" paint-order="stroke"' if halo else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'
