"""Study: the share of each negative in the S-DPO gradient, from log-probabilities of policy and reference.

The gradient of S-DPO on a row is −β (1 − p_0) [∇log π(y_0) − Σ_i w_i ∇log π(y_i)], with p = softmax(r_0..r_N) and
w = softmax(r_1..r_N) (arXiv 2406.09215, section 3.2). The study measures this gradient with respect to the
answers' log-probabilities. The gradient of the weights also has the model's own gradient as a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefrec.data import PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import Interval, mean_interval
from prefrec.evaluation.metrics import target_ranks
from prefrec.losses import effective_negatives
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import AlignSection, Recipe
from prefrec.pipeline.train import training_rows
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.report.wording import label
from prefrec_lab.studies.alignments import variant
from prefrec_lab.studies.measure import measure, same_rows, stacked
from prefrec_lab.studies.opened import ask, start_of
from prefrec_lab.studies.plots import Series, interval_dots, lines
from prefrec_lab.studies.study import Drawing, Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.studies.tables import facts_of, plain_table, results_table

ROWS = 400
"""Validation rows that are asked."""

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
    rows = len(training_rows(data, one, base.seed))
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
    """Measure the weights on validation rows after each model, effective negatives, and the norm by rank."""
    sections = [a for a in runs[0].recipe.align if a.loss == "softmax_dpo"]
    if not sections:
        raise DataError(f"{runs[0].folder}: no alignment with loss softmax_dpo, whose gradient the study is about")
    start, last = start_of(runs[0].recipe), sections[-1].name
    rows = same_rows(runs, lambda run: run.data.validation[:ROWS])
    logps_of_runs = [_ask(run, [start, *(a.name for a in sections)], rows, folder) for run in runs]
    betas = {a.name: a.beta for a in sections} | {start: sections[-1].beta}
    users = [e.user_id for e in rows]
    width = logps_of_runs[0][start].shape[1]
    hardness = _hardness(runs[0], rows, width)
    values: dict[str, dict[str, NDArray[np.float64]]] = {
        name: stacked([gradient_values(logps[name], logps[start], beta, hardness) for logps in logps_of_runs])
        for name, beta in ((n, betas[n]) for n in (start, *(a.name for a in sections)))
    }
    values[f"{last}{SHUFFLED}"] = stacked(
        [
            gradient_values(_shuffled(own[last], own[start], run.recipe.seed), own[start], betas[last], hardness)
            for own, run in zip(logps_of_runs, runs, strict=True)
        ]
    )
    measured = measure(values, users, baseline=start)
    title = f"The gradient on {len(rows)} validation rows, with all {width - 1} negatives"
    seed = runs[0].recipe.seed
    settings = {a.name: {"rows": len(training_rows(runs[0].data, a, seed)), "β": a.beta} for a in sections}
    table = results_table(measured, labels=LABELS, title=title, settings=settings)
    by_rank = rank_frame([logps[last] for logps in logps_of_runs], values[last]["norm"], users)
    ranks = plain_table("by-rank", f"Gradient norm of {last} by the rank of the target", "Rank", by_rank)
    drawings = [*_training_drawing(runs, sections), _rank_drawing(by_rank, last)]
    return Outcome(
        [table, ranks],
        drawings,
        facts_of(measured, labels=LABELS, quantities=[JUDGED, JUDGED_3]),
        measured.n,
        measured.users,
        [_NOTE, _JUDGE_NOTE, _PARTS_NOTE],
    )


def rank_frame(
    logps: Sequence[Tensor], norms: NDArray[np.float64], users: Sequence[str], bounds: Sequence[int] = (1, 3, 8)
) -> pl.DataFrame:
    """Return the mean gradient norm, with its interval, of rows whose target ranks 1, 2–3, 4–8 and lower.

    Args:
        logps: of the policy, [B, 1+N] with the target in column 0; one per seed.
        norms: of the gradient, [S, B].
        users: of the rows, [B].
        bounds: last rank of each group but the last.
    """
    ranks = np.stack([target_ranks(p.numpy(), np.zeros(len(p), dtype=np.int64)) for p in logps])
    width = logps[0].shape[1]
    edges = [0, *(b for b in bounds if b < width), width]
    groups = []
    for low, high in pairwise(edges):
        chosen = (ranks > low) & (ranks <= high)
        if not chosen.any():
            continue
        their_users = [u for row in chosen for u, c in zip(users, row, strict=True) if c]
        name = str(high) if high == low + 1 else f"{low + 1}–{high}"
        groups.append({"rank": name, **mean_interval(norms[chosen], their_users).to_json()})
    return pl.DataFrame(groups)


def _ask(run: Run, names: Sequence[str], rows: Sequence[RankingExample], folder: Path) -> dict[str, Tensor]:
    """Return model → log-probabilities [B, 1+N] of these rows, the target's first."""
    if not rows:
        raise DataError(f"{run.folder}: the data has no validation rows")
    frames = ask(run, names, rows, folder / "validation" / run.folder.name)
    width = min(len(e.candidates) for e in rows)
    logps = {}
    for name, frame in zip(names, frames, strict=True):
        scores = [
            [s[e.target_index], *s[: e.target_index], *s[e.target_index + 1 :]]
            for e, s in zip(rows, frame.sort("row")["scores"].to_list(), strict=True)
        ]
        logps[name] = torch.tensor([s[:width] for s in scores], dtype=torch.float64)
    return logps


def _hardness(run: Run, rows: Sequence[RankingExample], width: int) -> Tensor:
    """Return the scores [B, N] of the negatives by window co-occurrence, which knows no language model."""
    scores = WindowCooccurrenceRanker.fit(run.data.train_interactions).score(rows)
    negatives = [
        np.delete(s[: len(e.candidates)], e.target_index)[: width - 1] for s, e in zip(scores, rows, strict=True)
    ]
    return torch.from_numpy(np.stack(negatives))


def _shuffled(policy_logps: Tensor, ref_logps: Tensor, seed: int) -> Tensor:
    """Return log-probabilities [B, 1+N] with the same rewards, each row's rejected answers in another order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(ref_logps), ref_logps.shape[1] - 1, generator=generator).argsort(dim=1)
    rewards = (policy_logps - ref_logps)[:, 1:].gather(1, order)
    return torch.cat([policy_logps[:, :1], ref_logps[:, 1:] + rewards], dim=1)


def _training_drawing(runs: Sequence[Run], sections: Sequence[AlignSection]) -> list[Drawing]:
    """Return a plot of the effective negatives of training batches, one line per alignment, of the first seed."""
    stages = runs[0].stages
    points = {a.name: stages[a.name].points("negatives/effective") for a in sections if a.name in stages}
    series = [
        Series(f"{label(a.name)}, N = {a.num_negatives}", [x for x, _ in own], [y for _, y in own])
        for a in sections
        if (own := points.get(a.name, []))
    ]
    hint = "1/Σw² on training batches: N if all negatives weigh alike, 1 if one carries the whole gradient."
    title = "Effective negatives in training"
    return [lines("effective-negatives", title, series, x_label="optimiser step", hint=hint)] if series else []


def _rank_drawing(frame: pl.DataFrame, name: str) -> Drawing:
    shown = {row["rank"]: Interval.from_json(row) for row in frame.iter_rows(named=True)}
    title = f"Gradient norm of {label(name)} by the rank of the target"
    return interval_dots(
        "norm-by-rank", title, shown, list(shown), "Rows by the rank that the policy gives the target."
    )


_NOTE = (
    "The gradient is with respect to the answers’ log-probabilities; the gradient of the weights has the model’s own "
    "gradient as a further factor. Before training all negatives weigh the same, since all rewards are 0."
)
_JUDGE_NOTE = (
    "The judge is window co-occurrence, which knows no language model. The row “shuffled” has the same weights, "
    "given to the negatives of each row at random: it shows what a spread of weights alone gives. The largest weight "
    "and the effective number measure only that spread."
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
