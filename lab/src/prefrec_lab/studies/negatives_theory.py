"""Study: predictions of S-DPO's optimum for three samplers of negatives, and results of training.

With negatives from q the optimum of S-DPO is π* ∝ π_ref (p/q)^(1/β), where p is the data's distribution (derived in
docs/concepts.md). Its rewards are β log(π*/π_ref) = log p − log q, up to a constant per row. If the reference
fits the data, p = π_ref, and they depend on log π_ref and on log popularity alone, with the slopes in `PREDICTED`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData
from prefrec.evaluation.metrics import metrics_for, target_ranks
from prefrec.pipeline.opened import Run
from prefrec.rankers.matrices import pad_scores
from prefrec.recipe import Recipe
from prefrec.report.wording import label, number, with_interval
from prefrec_lab.studies.fairness import item_counts
from prefrec_lab.studies.negative_sampling import from_sources, variant_name
from prefrec_lab.study_tools.measure import Measured, measure, ranker_predictions, ranking_values, stacked, users_of
from prefrec_lab.study_tools.opened import start_of
from prefrec_lab.study_tools.plots import dots
from prefrec_lab.study_tools.study import Outcome, Study
from prefrec_lab.study_tools.tables import facts_of, results_table

REFERENCE, POPULARITY = "reference", "popularity"
PREDICTED = {"uniform": (1.0, 0.0), "in-batch": (1.0, -1.0), "reference": (0.0, 0.0)}
"""Source of the negatives → slopes of the optimum's rewards on log π_ref and on log popularity, if p = π_ref."""

LABELS = {REFERENCE: "slope of rewards on log π_ref", POPULARITY: "slope of rewards on log popularity"}


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO with negatives from each source of `PREDICTED`."""
    return from_sources(base, [*PREDICTED])


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare predicted slopes and accuracy with those after training."""
    first, start = runs[0], start_of(runs[0].recipe)
    names = {variant_name(source): source for source in PREDICTED}
    predictions = ranker_predictions(runs, [start, *names])
    counts, users = item_counts(first.data), users_of(predictions)
    betas = {a.name: a.beta for a in first.recipe.align}
    slopes = {
        name: stacked(
            [
                reward_slopes(r, p, betas[name], counts)
                for r, p in zip(predictions[start], predictions[name], strict=True)
            ]
        )
        for name in names
    }
    by_slope = measure(slopes, users, baseline=variant_name("reference"))
    values = dict(ranking_values(predictions, first.recipe.evaluate.ks))
    metrics = metrics_for(first.recipe.evaluate.ks)
    for name, source in names.items():
        ranks = [optimum_ranks(frame, PREDICTED[source], betas[name], counts) for frame in predictions[start]]
        values[f"optimum for {source}"] = {m: np.stack([f(*r) for r in ranks]) for m, f in metrics.items()}
    accuracy = measure(values, users, baseline=start)
    settings = {
        name: {f"predicted {LABELS[q]}": PREDICTED[source][i] for i, q in enumerate(LABELS)}
        for name, source in names.items()
    }
    tables = [
        results_table(by_slope, labels=LABELS, settings=settings, title="Slopes of the rewards within a list"),
        results_table(accuracy, name="accuracy", title="Accuracy, trained and of the predicted optimum"),
    ]
    facts = [_order(by_slope, q, {n: PREDICTED[s][i] for n, s in names.items()}) for i, q in enumerate(LABELS)]
    facts += [*facts_of(by_slope, labels=LABELS, quantities=[*LABELS]), *facts_of(accuracy, [*names])]
    drawings = [dots(by_slope, q, [*names], heading) for q, heading in LABELS.items()]
    drawings += [dots(accuracy, accuracy.headline[-1], [*names])]
    return Outcome(tables, drawings, facts, accuracy.n, accuracy.users, [_NOTE])


def reward_slopes(
    reference: pl.DataFrame, policy: pl.DataFrame, beta: float, counts: Mapping[str, int]
) -> dict[str, NDArray[np.float64]]:
    """Return the slopes [B] of rewards on log π_ref and log popularity, by least squares in each row."""
    slopes = []
    pairs = zip(_log_probs(reference, counts), policy["scores"].to_list(), strict=True)
    for (ref, popularity), own in pairs:
        known = np.stack([ref, popularity], axis=1)
        rewards = beta * (np.array(own) - ref)
        slopes.append(np.linalg.lstsq(known - known.mean(axis=0), rewards - rewards.mean(), rcond=None)[0])
    return dict(zip(LABELS, np.array(slopes).T, strict=True))


def optimum_ranks(
    reference: pl.DataFrame, slopes: tuple[float, float], beta: float, counts: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the target's rank and ties [B] under the optimum log π_ref + r/β, whose rewards r have these slopes."""
    scores = [
        ref + (slopes[0] * ref + slopes[1] * popularity) / beta for ref, popularity in _log_probs(reference, counts)
    ]
    targets = [c.index(t) for c, t in reference.select("candidates", "target").iter_rows()]
    return target_ranks(pad_scores(scores), targets)


def _log_probs(
    reference: pl.DataFrame, counts: Mapping[str, int]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return log π_ref [C] and log popularity [C] of each row's candidates; an item without interactions counts 1."""
    rows = reference.select("candidates", "scores").iter_rows()
    return [(np.array(scores), np.log([1 + counts.get(i, 0) for i in candidates])) for candidates, scores in rows]


def _order(measured: Measured, quantity: str, predicted: Mapping[str, float]) -> str:
    """Return a sentence: predicted and seen values, and how many pairs are in the predicted order."""
    seen = {n: measured.intervals[n][quantity] for n in predicted}
    pairs = [(a, b) for a, b in permutations(predicted, 2) if predicted[a] > predicted[b]]
    kept = sum(seen[a].mean > seen[b].mean for a, b in pairs)
    told = ", ".join(f"{label(n)} {with_interval(i)} (predicted {number(predicted[n])})" for n, i in seen.items())
    text = f"{LABELS[quantity]}: {told}; {kept} of {len(pairs)} pairs are in the predicted order."
    return text.replace("\u00a0", " ")


_NOTE = (
    "With negatives from q the optimum is π* ∝ π_ref (p/q)^(1/β), so rewards are log p − log q. The predictions "
    "assume that the reference fits the data (p = π_ref). “Optimum for” ranks by the predicted rewards added to the "
    "reference, without training. Few steps go part of the way: signs and order are predicted, not sizes."
)

NEGATIVES_THEORY = Study(
    "negatives-theory",
    "Does S-DPO move where its optimum says, with uniform, in-batch and reference negatives?",
    "where the negatives come from: uniform, targets of other rows, the SFT model’s probabilities; the SFT model, "
    "rows, N, β and steps are the same.",
    vary,
    analyse,
)
