"""The best ranker on validation examples, which serves and recommends unless the user names another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import PreparedData
from prefrec.evaluation import metrics_for, predict
from prefrec.evaluation.best import METRIC, Best, choose
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.entry import Entry
from prefrec.pipeline.recipe import Recipe, reached
from prefrec.pipeline.score import fit_baselines, predict_entries
from prefrec.rankers.baselines import RandomRanker, servable

ROWS, SLOW_ROWS = 1000, 300
"""Validation examples to compare rankers on, and how many of them slow models score."""


def best_on_validation(recipe: Recipe, data: PreparedData, entries: Sequence[Entry], cache: Path) -> Best | None:
    """Return the ranker with the highest NDCG@10 on validation candidate sets; None without validation examples.

    Only rankers that support full ranking count. A blend scores each user with weights learnt from other users.
    Predictions are kept in the folder `cache`.
    """
    rows = data.some("validation", ROWS)
    if not rows:
        return None
    more = {"split": "validation", "generate_rows": 0, "references": _references(recipe, data)}
    section = recipe.evaluate.model_copy(update=more)
    values = {
        r.name: _ndcg(predict(r, rows, data.catalogue, generate=False), range(len(rows)), len(rows))
        for r in fit_baselines(data, section, recipe.seed)
    }
    positions = {(e.user_id, e.history, e.target): at for at, e in enumerate(rows)}
    some = sorted(positions[e.user_id, e.history, e.target] for e in data.some("validation", SLOW_ROWS))
    able = [entry for entry in entries if entry.full]
    slow = {entry.name for entry in able if entry.is_slow}
    for at, is_slow in ((list(range(len(rows))), False), (some, True)):
        # A blend with a slow part is slow, too.
        some_entries = [e.on_validation for e in able if bool(slow & {*reached(recipe.needs, e.name)}) == is_slow]
        frames = predict_entries(data, section, some_entries, [rows[i] for i in at], cache, seed=recipe.seed)
        values |= {e.name: _ndcg(frame, at, len(rows)) for e, frame in zip(some_entries, frames, strict=True)}
    return choose(values) if values else None


def _references(recipe: Recipe, data: PreparedData) -> list[str]:
    able = servable(data.train_interactions)
    return [name for name in recipe.evaluate.references if name in able and name != RandomRanker.name]


def _ndcg(predictions: pl.DataFrame, at: Sequence[int], count: int) -> Floats:
    """Return NDCG@10 [count] of predictions on the examples with indices `at`; NaN for the others."""
    values = np.full(count, np.nan)
    values[list(at)] = metrics_for([10])[METRIC](*ranks_of(predictions.sort("row")))
    return values
