"""The time of baselines and blends: of the scores that they give, at the measured time of one, and of fitting."""

from __future__ import annotations

from time import process_time
from timeit import repeat

from prefrec.data import PreparedData, seen_items
from prefrec.evaluation import rank_catalogue
from prefrec.pipeline.best import ROWS, compared_baselines
from prefrec.rankers import PopularityRanker
from prefrec.rankers.blend import BlendConfig
from prefrec.rankers.item_only import ItemOnlyRanker
from prefrec.recipe import Recipe
from prefrec.stages.blend import MOST_CANDIDATES

BASELINE, ITEM_ONLY, BLEND, LEARNT = 1.5, 10, 4, 80
"""Time of a score relative to one of popularity: of a baseline, `item only`, a blend, and where a blend learns."""
FITTED_S = 2e-5
"""Seconds per interaction in which all baselines are fitted once."""
_SCORES = 2_000_000


def tables_seconds(recipe: Recipe, data: PreparedData) -> float:
    """Return the seconds of baselines and blends under test and for validation, and of learning the blends."""
    section, items = recipe.evaluate, len(data.catalogue)
    # The whole, without a part, and without times.
    variants = sum(len(blend.parts) + len(blend.attributes) + 2 for blend in blends(recipe))
    each = BASELINE * len(section.references) + BLEND * variants
    each += ITEM_ONLY * (ItemOnlyRanker.name in section.references)
    scores = each * asked_rows(recipe, data)[1] * items
    compared = BASELINE * len(compared_baselines(recipe, data)) + BLEND * len(blends(recipe))
    scores += compared * min(len(data.validation), ROWS) * items
    scores += LEARNT * sum(learnt_rows(blend, data) for blend in blends(recipe)) * min(items, MOST_CANDIDATES)
    # Baselines learn what is known before test rows and before validation rows, and so do the parts of a blend.
    fits = 2 + 2 * len(blends(recipe))
    return scores * seconds_per_score(data) + fits * FITTED_S * len(data.train_interactions)


def blends(recipe: Recipe) -> list[BlendConfig]:
    """Return the blends of a recipe."""
    return [ranker for ranker in recipe.rankers if isinstance(ranker, BlendConfig)]


def asked_rows(recipe: Recipe, data: PreparedData) -> tuple[int, int]:
    """Return the numbers of rows under test, and of those in full ranking by what is quick."""
    section = recipe.evaluate
    count = len(data.split(section.split))
    rows = min(section.rows or count, count)
    return rows, 0 if section.full_rows == 0 else rows


def learnt_rows(blend: BlendConfig, data: PreparedData) -> int:
    """Return the number of validation rows that a blend learns from."""
    count = len(data.validation)
    return min(blend.rows or count, count)


def seconds_per_score(data: PreparedData) -> float:
    """Return the time in which popularity, the quickest baseline, scores one item in full ranking."""
    items = len(data.catalogue)
    rows = [*(data.validation or data.test)[: max(1, _SCORES // items)]]
    if not rows:
        return 0.0
    ranker = PopularityRanker.fit(data.train_interactions)
    seen = seen_items(data, rows)
    # Of the processor: what else runs here does not count.
    least = min(repeat(lambda: rank_catalogue(ranker, rows, data.catalogue, seen), process_time, repeat=3, number=1))
    return least / (len(rows) * items)
