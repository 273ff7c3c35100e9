"""The best ranker on validation examples, which serves and recommends unless the user names another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.data.seen import items_before
from prefrec.evaluation import metrics_for, rank_catalogue
from prefrec.evaluation.best import METRIC, Best, choose
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.evaluation.targets import FEWEST, NEW_TO_USER, REPEAT, repeated_targets
from prefrec.pipeline.score import full_stages, predict_stages
from prefrec.rankers.baselines import RandomRanker, servable
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.recipe import Recipe, reached
from prefrec.stages.base import RankerStage

Values = tuple[dict[str, Floats], dict[str, str]]
ROWS, SLOW_ROWS = 1000, 200
"""Validation examples to compare rankers on, and how many of them slow models rank at most."""


def best_on_validation(
    recipe: Recipe, data: PreparedData, stages: Sequence[RankerStage], cache: Path, baselines: FittedBaselines
) -> Best | None:
    """Return the ranker with the highest NDCG@10 in full ranking of validation examples.

    Candidate sets would not do: `candidates.kind: targets` takes the value of popularity away, which a server needs.
    The baselines of the table that can be served count, too. A blend scores each user with weights learnt from other
    users. Predictions are kept in the folder `cache`.

    If the data keep repeats, the best ranker is also chosen on the examples of each kind (`Best.by_repeat`), unless
    there are fewer than `FEWEST` of them.

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

    def values_of(asked: Sequence[RankingExample], seen: Sequence[Collection[str]], folder: Path) -> Values:
        return _values(recipe, data, stages, baselines, asked, seen, folder)

    values, unranked = values_of(rows, seen_items(data, rows), cache)
    if not values:
        return None
    best, repeated = choose(values, unranked), repeated_targets(data, rows)
    if repeated is None:
        return best
    of_kind: dict[str, dict[str, Floats]] = {}
    is_repeat = np.array(repeated)
    if is_repeat.sum() >= FEWEST:
        of_kind[REPEAT] = {name: column[is_repeat] for name, column in values.items()}
    new = [e for e, again in zip(rows, repeated, strict=True) if not again]
    if len(new) >= FEWEST:
        # Answers without seen items are another question: a ranker that puts these first still orders the others.
        of_kind[NEW_TO_USER], _ = values_of(new, items_before(data, new), cache / "new")
    measured = {kind: _measured(values) for kind, values in of_kind.items()}
    return replace(best, by_repeat={kind: choose(values) for kind, values in measured.items() if values})


def _values(
    recipe: Recipe,
    data: PreparedData,
    stages: Sequence[RankerStage],
    baselines: FittedBaselines,
    rows: Sequence[RankingExample],
    seen: Sequence[Collection[str]],
    cache: Path,
) -> Values:
    """Return ranker → NDCG@10 [B] among the items not seen, NaN where it was not asked, and why some never were."""
    more = {"split": "validation", "generate_rows": 0, "baselines": compared_baselines(recipe, data)}
    section = recipe.evaluate.model_copy(update=more)
    known = set(data.known_interactions("validation")["item_id"])
    values = {
        r.name: _ndcg(rank_catalogue(r, rows, data.catalogue, seen, known), range(len(rows)), len(rows))
        for r in baselines.before(section.split, section.baselines)
    }
    sample = {(e.user_id, e.history, e.target) for e in data.examples("validation", slow_rows(recipe))}
    sampled = [at for at, e in enumerate(rows) if (e.user_id, e.history, e.target) in sample]
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
    return values, unranked


def _measured(values: dict[str, Floats]) -> dict[str, Floats]:
    """Return the values of the rankers that ranked an example."""
    return {name: column for name, column in values.items() if np.isfinite(column).any()}


def slow_rows(recipe: Recipe) -> int:
    """Return how many validation examples slow models rank at most: no more than `evaluate.full_rows`."""
    most = recipe.evaluate.full_rows
    return SLOW_ROWS if most is None else min(most, SLOW_ROWS)


def compared_baselines(recipe: Recipe, data: PreparedData) -> list[str]:
    """Return the names of the table's baselines that can be the default: those that a server can ask."""
    able = {*servable(data.train_interactions)} - {RandomRanker.name}
    return [name for name in recipe.evaluate.baselines if name in able]


def _ndcg(predictions: pl.DataFrame, at: Sequence[int], count: int) -> Floats:
    """Return NDCG@10 [count] of predictions on the examples with indices `at`; NaN for the others."""
    values = np.full(count, np.nan)
    values[list(at)] = metrics_for([10])[METRIC](*ranks_of(predictions.sort("row")))
    return values
