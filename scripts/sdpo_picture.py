"""Draw docs/images/sdpo.svg, the picture of docs/sdpo.md: `python scripts/sdpo_picture.py`.

A prompt branches into four answers. Bars show the softmax of their rewards before and after training, with the
numbers of the page.
"""

from __future__ import annotations

import math
from pathlib import Path

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "sdpo.svg"
PROMPT = ("Watched: Alien;", "Aliens. Next:")
ANSWERS = ("The Terminator", "Emma", "Babe", "Clueless")
"""The chosen answer, then the rejected ones."""
REFERENCE = (-5.0, -4.0, -6.0, -5.5)
POLICY = (-4.2, -4.8, -6.1, -6.0)
"""log π of the answers after training, in nats."""
CHOSEN, REJECTED, BEFORE = "#00796b", "#c25a1a", "#b0b8bd"
WIDTH, ROW, TOP = 700, 58, 46
BAR = 320.0
"""Length of a bar of 1."""


def shares(rewards: tuple[float, ...]) -> list[float]:
    """Return the softmax of rewards."""
    powers = [math.exp(r) for r in rewards]
    return [p / sum(powers) for p in powers]


def picture() -> str:
    """Return the picture as SVG."""
    before = shares((0.0,) * len(ANSWERS))
    after = shares(tuple(p - r for p, r in zip(POLICY, REFERENCE, strict=True)))
    middle = TOP + ROW * len(ANSWERS) / 2
    height = TOP + ROW * len(ANSWERS) + 14
    told = "; ".join(f"{a} {b:.2f}, {c:.2f}" for a, b, c in zip(ANSWERS, before, after, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="One chosen and three rejected answers. Softmax of rewards before and after: {told}." '
        'font-family="sans-serif" font-size="15" fill="#1d2529">',
        _text(20, 28, "one prompt", bold=True),
        _text(236, 28, "four answers", bold=True),
        _text(420, 28, "softmax of rewards", bold=True),
        f'<rect x="20" y="{middle - 34}" width="140" height="68" rx="8" fill="#eef3f4" stroke="#7b8a90"/>',
        *(_text(32, middle - 6 + 22 * n, line) for n, line in enumerate(PROMPT)),
    ]
    for n, answer in enumerate(ANSWERS):
        y = TOP + ROW * n + ROW / 2
        colour = CHOSEN if n == 0 else REJECTED
        parts += [
            f'<path d="M160 {middle} C 195 {middle}, 195 {y}, 230 {y}" '
            f'fill="none" stroke="{colour}" stroke-width="2"/>',
            _text(236, y - 2, answer, colour=colour, bold=n == 0),
            _text(236, y + 16, "chosen" if n == 0 else "rejected", colour="#5b676c", size=12),
            _bar(y - 18, before[n], BEFORE, "before"),
            _bar(y + 2, after[n], colour, "after"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _bar(y: float, share: float, colour: str, when: str) -> str:
    length = BAR * share
    bar = f'<rect x="420" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>'
    return bar + _text(428 + length, y + 12, f"{share:.2f} {when}", size=12)


def _text(x: float, y: float, text: str, *, colour: str = "#1d2529", size: int = 15, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{weight}>{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
