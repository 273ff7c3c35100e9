"""Study: the share of each negative in the S-DPO gradient, from log-probabilities of policy and reference.

The gradient of S-DPO on a row is −β (1 − p_0) [∇log π(y_0) − Σ_i w_i ∇log π(y_i)], with p = softmax(r_0..r_N) and
w = softmax(r_1..r_N) (arXiv 2406.09215, section 3.2). The study measures this gradient with respect to the
answers' log-probabilities. The gradient of the weights also has the model's own gradient as a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.losses import effective_negatives
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe
from prefrec.stages.training_rows import alignment_rows
from prefrec_lab.studies.alignments import variant
from prefrec_lab.study_tools.measure import measure, ranker_predictions, stacked, users_of
from prefrec_lab.study_tools.opened import start_of
from prefrec_lab.study_tools.plots import dots
from prefrec_lab.study_tools.study import Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.study_tools.tables import facts_of, results_table

SHUFFLED = ", shuffled"

PARTS = (0.25, 0.5, 1.0)
"""Shares of the rows with a model each, as points in training."""

JUDGED, JUDGED_3 = "judged", "judged 3"
LABELS = {
    JUDGED: "weight of the judge’s hardest negative",
    JUDGED_3: "weight of the judge’s hardest three",
    "largest": "largest weight",
    "effective": "effective negatives",
    "wrong": "1 − p₀",
    "norm": "gradient norm",
}


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO trained on a quarter, half and all of the rows."""
    one = varied_alignment(base)
    rows = len(alignment_rows(data, one, base.seed))
    parts = {max(1, round(rows * part)): part for part in PARTS}
    shorter = [variant(one, f"s-dpo-rows{n}", rows=n) for n, part in parts.items() if part < 1]
    return with_alignments(base, [*shorter, variant(one, "s-dpo")])


def sdpo_gradient(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """Return the gradient [B, 1+N] of each row's S-DPO loss with respect to the policy's log-probabilities.

    By the formula it is −β (1 − p_0) for the chosen answer in column 0, and β (1 − p_0) w_i for the rejected ones.
    """
    rewards = beta * (policy_logps - ref_logps)
    wrong = 1 - torch.softmax(rewards, dim=1)[:, :1]
    weights = torch.softmax(rewards[:, 1:], dim=1)
    return beta * wrong * torch.cat([-torch.ones_like(wrong), weights], dim=1)


def gradient_values(
    policy_logps: Tensor, ref_logps: Tensor, beta: float, hardness: Tensor
) -> dict[str, NDArray[np.float64]]:
    """Return the quantities [B] of `LABELS` for each row's gradient.

    Args:
        hardness: of the rejected answers by a judge that the policy does not know, [B, N].
    """
    rewards = beta * (policy_logps - ref_logps)
    weights = torch.softmax(rewards[:, 1:], dim=1)
    by_judge = weights.gather(1, hardness.argsort(dim=1, descending=True, stable=True))
    quantities = {
        JUDGED: by_judge[:, 0],
        JUDGED_3: by_judge[:, :3].sum(dim=1),
        "largest": weights.max(dim=1).values,
        "effective": effective_negatives(rewards),
        "wrong": 1 - torch.softmax(rewards, dim=1)[:, 0],
        "norm": sdpo_gradient(policy_logps, ref_logps, beta).norm(dim=1),
    }
    return {name: v.double().numpy() for name, v in quantities.items()}


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Measure the weights of the negatives under each model; the last of the recipe's baselines is the judge.

    Raises:
        DataError: there is no alignment with loss softmax_dpo, or a run lacks a model.
    """
    recipe = runs[0].recipe
    sections = [a for a in recipe.align if a.loss == "softmax_dpo"]
    if not sections or not recipe.evaluate.baselines:
        raise DataError(
            f"{runs[0].folder}: the study needs an alignment with loss softmax_dpo, and a baseline that judges its "
            "negatives (evaluate.baselines)"
        )
    start = start_of(recipe)
    last = sections[-1].name
    judge = recipe.evaluate.baselines[-1]
    names = [start, *(a.name for a in sections)]
    predictions = ranker_predictions(runs, [*names, judge])
    logps = {name: [_target_first(frame) for frame in frames] for name, frames in predictions.items()}
    hardness, betas = logps[judge][0][:, 1:], {a.name: a.beta for a in sections}
    shuffled = [_shuffled(p, r, run.recipe.seed) for p, r, run in zip(logps[last], logps[start], runs, strict=True)]
    betas |= {start: betas[last], f"{last}{SHUFFLED}": betas[last]}
    values = {
        name: stacked([gradient_values(p, r, betas[name], hardness) for p, r in zip(own, logps[start], strict=True)])
        for name, own in ({n: logps[n] for n in names} | {f"{last}{SHUFFLED}": shuffled}).items()
    }
    measured = measure(values, users_of(predictions), baseline=start)
    title = f"The gradient on {measured.n:,} {recipe.evaluate.split} rows, with all {hardness.shape[1]} negatives"
    settings = {a.name: {"rows": len(alignment_rows(runs[0].data, a, recipe.seed)), "β": a.beta} for a in sections}
    return Outcome(
        [results_table(measured, labels=LABELS, title=title, settings=settings)],
        [dots(measured, JUDGED, names, LABELS[JUDGED])],
        facts_of(measured, labels=LABELS, quantities=[JUDGED, JUDGED_3]),
        measured.n,
        measured.users,
        [_NOTE, _JUDGE_NOTE.format(judge=judge), _PARTS_NOTE],
    )


def _target_first(frame: pl.DataFrame) -> Tensor:
    """Return scores [B, 1+N] with the target's in column 0; larger candidate sets are cut to the smallest."""
    rows = []
    for candidates, target, scores in frame.select("candidates", "target", "scores").iter_rows():
        place = candidates.index(target)
        rows.append([scores[place], *scores[:place], *scores[place + 1 :]])
    width = min(map(len, rows))
    return torch.tensor([row[:width] for row in rows], dtype=torch.float64)


def _shuffled(policy_logps: Tensor, ref_logps: Tensor, seed: int) -> Tensor:
    """Return log-probabilities [B, 1+N] with the same rewards, each row's rejected answers in another order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(ref_logps), ref_logps.shape[1] - 1, generator=generator).argsort(dim=1)
    rewards = (policy_logps - ref_logps)[:, 1:].gather(1, order)
    return torch.cat([policy_logps[:, :1], ref_logps[:, 1:] + rewards], dim=1)


_NOTE = (
    "The gradient is with respect to the answers’ log-probabilities. Before training all rewards are 0, so all "
    "negatives weigh the same."
)
_JUDGE_NOTE = (
    "The judge is {judge}, which knows no language model. “shuffled” has the same weights in random order "
    "within each row: what a spread of weights alone gives. The largest weight and the effective number measure only "
    "that spread."
)
_PARTS_NOTE = "Models of fewer rows are separate trainings with a shorter schedule, not checkpoints of the longest."

GRADIENTS = Study(
    "gradients",
    "Does S-DPO put its gradient on the hardest negatives, and more so the longer it trains?",
    "how many rows S-DPO has been trained on; the SFT model, negatives and β are the same.",
    vary,
    analyse,
    reads_any_run=True,
)
