"""Training curves: a plot per quantity, with lines for training and dots for validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.extras import is_installed
from prefrec.losses import COLUMNS, find_loss, needs_reference, takes
from prefrec.report.svg import INK, PALETTE, as_image, can_plot, new_figure
from prefrec.report.wording import label, number
from prefrec.runs.contents import StageLog
from prefrec.training.defaults import LOSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_FROM = 40
"""Number of points from which a running mean is drawn on top of the raw line."""
PANELS = {
    # No log-probabilities: in training they are sums over all titles of a history, in validation of one title.
    "sft": (("Loss", "loss", "", "−log-probability of the answer, per token."),),
    "align": (
        ("Loss", "loss", "", ""),
        ("Rewards", "rewards/chosen", "rewards/rejected", ""),
        ("Reward margin", "rewards/margins", "", "Chosen minus the mean of the rejected."),
        ("Reward accuracy", "rewards/accuracies", "", "Share of examples whose chosen reward is the highest."),
        ("Log-probabilities", "logps/chosen", "logps/rejected", ""),
        ("Effective negatives", "negatives/effective", "", "1/Σw²: N if all weights are equal, 1 if one has all."),
    ),
}
"""Kind of a stage → title, keys of the log for the solid and the dashed line, and hint of each plot."""


def training_plots(stages: Sequence[StageLog]) -> dict[str, Any]:
    """Return the plots of SFT and of all alignments (title, hint and image), and what their legend needs.

    Without matplotlib, `missing` is True and there are no plots.
    """
    colours = stage_colours(stages)
    drawn: dict[str, Any] = {}
    for kind, panels in PANELS.items():
        chosen = [s for s in stages if s.kind == kind]
        drawn[kind] = []
        for title, *keys, hint in panels if can_plot() else ():
            if _has_points(chosen, keys):
                drawn[kind].append(_plot(chosen, colours, title, keys, hint))
    named = [(label(s.name), colours[s.name]) for s in stages if s.log]
    return {**drawn, "colours": named, "smooth_from": SMOOTH_FROM, "missing": not can_plot()}


def _has_points(stages: Sequence[StageLog], keys: Sequence[str]) -> bool:
    return any(s.points(key) or s.points(f"eval_{key}") for s in stages for key in keys if key)


def stage_colours(stages: Sequence[StageLog]) -> dict[str, str]:
    """Return stage → colour of its model in all plots of a page."""
    return {s.name: PALETTE[i % len(PALETTE)] for i, s in enumerate(stages)}


def start_loss(stage: StageLog) -> float | None:
    """Return the loss of a policy equal to its reference, such as ln(1+N) for S-DPO.

    None for losses without a reference, for those that depend on more than the log-probabilities, and without torch.
    """
    name = stage.setting("loss") or stage.setting("loss_type") or LOSS
    negatives = stage.setting("num_negatives")
    try:
        loss = find_loss(name)
    except ValueError:  # of a package that is not installed
        return None
    is_known = isinstance(negatives, int) and negatives > 0 and needs_reference(loss)
    if not is_known or any(takes(loss, column) for column in COLUMNS):
        return None
    if not is_installed("lm"):
        return None
    import torch

    equal = torch.zeros(1, 1 + negatives)
    return loss(equal, equal, 1.0).losses.item()


def _plot(
    stages: Sequence[StageLog], colours: Mapping[str, str], title: str, keys: Sequence[str], hint: str
) -> dict[str, str]:
    figure, axes = new_figure()
    hints, words = [hint] if hint else [], []
    for stage in stages:
        for key, dashed in zip(keys, (False, True), strict=True):
            if key:
                _draw(axes, stage, key, colours[stage.name], dashed)
                words += _in_words(stage, key)
        start = start_loss(stage) if stage.kind == "align" and title == "Loss" else None
        if start is not None:
            axes.axhline(start, color=colours[stage.name], linestyle=":", linewidth=1.3)
            hints.append(f"{label(stage.name)} starts at ln {math.exp(start):.0f} = {number(start)} (dotted).")
    axes.set_xlabel("optimiser step", fontsize=9, color=INK)
    axes.margins(x=0.02)
    image = as_image(figure, f"{title}. {' '.join(words)}")
    return {"title": title, "hint": " ".join(hints), "image": image}


def _draw(axes: Axes, stage: StageLog, key: str, colour: str, dashed: bool) -> None:
    train, held_out = np.array(stage.points(key)), np.array(stage.points(f"eval_{key}"))
    style = (0, (4, 2)) if dashed else "-"
    if len(train):
        smooth = len(train) >= SMOOTH_FROM
        marker = "." if len(train) == 1 else ""
        axes.plot(*train.T, color=colour, linestyle=style, linewidth=1.6, alpha=0.25 if smooth else 1, marker=marker)
        if smooth:
            axes.plot(train[:, 0], running_mean(train[:, 1]), color=colour, linestyle=style, linewidth=1.8)
    if len(held_out):
        face = "none" if dashed else colour
        axes.plot(*held_out.T, "o", color=colour, markerfacecolor=face, markersize=4.5, linestyle="none")


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred running mean [T] over about a twelfth of the values, ignoring NaN."""
    width = 2 * max(1, len(values) // 24) + 1
    means = pl.Series(values).fill_nan(None).rolling_mean(width, min_samples=1, center=True)
    return means.fill_null(np.nan).to_numpy()


def _in_words(stage: StageLog, key: str) -> list[str]:
    words = []
    for prefix, part in (("", "training"), ("eval_", "validation")):
        if points := stage.points(f"{prefix}{key}"):
            first, last = (f"{number(value)} at step {step:.0f}" for step, value in (points[0], points[-1]))
            words.append(f"{label(stage.name)}, {key}, {part}: {first} to {last}.")
    return words
