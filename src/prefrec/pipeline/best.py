"""The best ranker on validation examples, which serves and recommends unless the user names another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import PreparedData, seen_items
from prefrec.evaluation import metrics_for, rank_catalogue
from prefrec.evaluation.best import METRIC, Best, choose
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.score import full_stages, predict_stages
from prefrec.rankers.baselines import RandomRanker, servable
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.recipe import Recipe, reached
from prefrec.stages.base import RankerStage

ROWS, SLOW_ROWS = 1000, 200
"""Validation examples to compare rankers on, and how many of them slow models rank at most."""


def best_on_validation(
    recipe: Recipe, data: PreparedData, stages: Sequence[RankerStage], cache: Path, baselines: FittedBaselines
) -> Best | None:
    """Return the ranker with the highest NDCG@10 in full ranking of validation examples.

    Candidate sets would not do: `candidates.kind: targets` takes the value of popularity away, which a server needs.
    The baselines of the table that can be served count, too. A blend scores each user with weights learnt from other
    users. Predictions are kept in the folder `cache`.

    Args:
        recipe: of the run.
        data: prepared data.
        stages: those of the rankers that are not baselines.
        cache: folder of predictions.
        baselines: those of the data.

    Returns:
        The best ranker; None without validation examples, or if no ranker supports full ranking.
    """
    rows = data.examples("validation", ROWS)
    if not rows:
        return None
    more = {"split": "validation", "generate_rows": 0, "references": compared_baselines(recipe, data)}
    section = recipe.evaluate.model_copy(update=more)
    seen = seen_items(data, rows)
    known = set(data.known_interactions("validation")["item_id"])
    values = {
        r.name: _ndcg(rank_catalogue(r, rows, data.catalogue, seen, known), range(len(rows)), len(rows))
        for r in baselines.before(section.split, section.references)
    }
    positions = {(e.user_id, e.history, e.target): at for at, e in enumerate(rows)}
    sampled = sorted(
        positions[e.user_id, e.history, e.target] for e in data.examples("validation", slow_rows(recipe))
    )
    able = full_stages(stages)
    unranked: dict[str, str] = {}
    for stage in stages:
        if stage.full is None:
            unranked[stage.name] = "it does not rank the whole catalogue"
    slow = {stage.name for stage in able if stage.is_slow}
    for at, is_slow in ((list(range(len(rows))), False), (sampled, True)):
        # A blend with a slow part is slow, too.
        group = []
        for stage in able:
            has_slow_part = bool(slow & {*reached(recipe.needs, stage.name)})
            if has_slow_part == is_slow:
                group.append(stage.on("validation"))
        if not at:
            unranked |= {e.name: "evaluate.full_rows is 0" for e in group}
            continue
        asked = [rows[i] for i in at]
        seen_before = [seen[i] for i in at]
        frames = predict_stages(data, section, group, asked, cache, seed=recipe.seed, seen=seen_before)
        values |= {e.name: _ndcg(frame, at, len(rows)) for e, frame in zip(group, frames, strict=True)}
    return choose(values, unranked) if values else None


def slow_rows(recipe: Recipe) -> int:
    """Return how many validation examples slow models rank at most: no more than `evaluate.full_rows`."""
    most = recipe.evaluate.full_rows
    return SLOW_ROWS if most is None else min(most, SLOW_ROWS)


def compared_baselines(recipe: Recipe, data: PreparedData) -> list[str]:
    """Return the names of the table's baselines that can be the default: those that a server can ask."""
    able = {*servable(data.train_interactions)} - {RandomRanker.name}
    return [name for name in recipe.evaluate.references if name in able]


def _ndcg(predictions: pl.DataFrame, at: Sequence[int], count: int) -> Floats:
    """Return NDCG@10 [count] of predictions on the examples with indices `at`; NaN for the others."""
    values = np.full(count, np.nan)
    values[list(at)] = metrics_for([10])[METRIC](*ranks_of(predictions.sort("row")))
    return values
