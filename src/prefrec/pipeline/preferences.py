"""Metrics of liked over disliked items, for runs with an alignment on ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefrec.console import say
from prefrec.data import PreparedData
from prefrec.data.preferences import PreferenceQuestion, mean_rating_scores, preference_questions, with_opinions
from prefrec.evaluation import preferences as metrics
from prefrec.evaluation.preferences import Floats, Mask, Preferences
from prefrec.pipeline.entry import Entry, lm_entry
from prefrec.pipeline.negatives import history_length
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, AlignSection, Recipe
from prefrec.pipeline.score import ask_models
from prefrec.rankers import PopularityRanker
from prefrec.rankers.rows import pad_scores

POPULARITY, MEAN_RATING = "popularity", "mean rating"
LOGPS, REWARD, MIXED, WITH_RATING = "log π", "reward", "log π + λ·reward", "mean rating + λ·reward"


@dataclass(frozen=True)
class Answers:
    """Answers to B questions of up to C items: [B, C] arrays, 0 in empty places.

    `logps` and `references` are scores by name. `liked` and `disliked` mark places of such items; `validation` and
    `tested` [B] mark questions that choose weights and questions under test.
    """

    logps: Mapping[str, Floats]
    references: Mapping[str, Floats]
    liked: Mask
    disliked: Mask
    users: list[str]
    validation: Mask
    tested: Mask


def run_preferences(recipe: Recipe, data: PreparedData, entries: Sequence[Entry], cache: Path) -> Preferences | None:
    """Return how well SFT (or the bare base) and the alignments tell liked from disliked items.

    The first alignment with `negatives_from: rated` sets the thresholds. Return None without such an alignment, or
    without questions. Predictions are kept in the folder `cache`.
    """
    section = next((a for a in recipe.align if a.negatives_from == "rated"), None)
    if section is None:
        return None
    questions = _questions(data, section)
    if not questions.get(recipe.evaluate.split):
        say(
            f"preferences: not measured, as no {recipe.evaluate.split} user has liked and disliked items after the "
            "training part (`split: time-share` in `data` holds out a fifth of each user's log)"
        )
        return None
    sft = next((e for e in entries if e.name == SFT), None) if recipe.sft else None
    start = sft or lm_entry(ZERO_SHOT, None, data, recipe.model)
    references = {a.name: a.start or start.name for a in recipe.align}
    aligned = [e for e in entries if e.name in references]
    answers = _ask(recipe, data, questions, [start, *aligned], cache)
    return measure(answers, start.name, {e.name: references[e.name] for e in aligned}, seed=recipe.seed)


def measure(answers: Answers, first: str, aligned: Mapping[str, str], *, seed: int) -> Preferences:
    """Return metrics of each model's log π, reward and mixtures, and of the references, on questions under test.

    The reward is log π − log π_ref. Without validation questions, which choose weights (`best_weight`), there are no
    mixtures. `first` is the model before all alignment; `aligned` maps each aligned model to its reference.
    """
    start = f"{first}: {LOGPS}"
    scores = {start: answers.logps[first], **answers.references}
    weights: dict[str, float] = {}
    compare: list[tuple[str, str]] = []
    for name, reference in aligned.items():
        own, chosen = _own_scores(answers, answers.logps[name], answers.logps[reference])
        scores |= {f"{name}: {kind}": s for kind, s in own.items()}
        weights |= {f"{name}: {kind}": weight for kind, weight in chosen.items()}
        compare += [(f"{name}: {kind}", start) for kind in (LOGPS, REWARD, MIXED) if kind in own]
        compare += [(f"{name}: {REWARD}", other) for other in answers.references]
        compare += [(f"{name}: {WITH_RATING}", MEAN_RATING)] if WITH_RATING in own else []
    rows = answers.tested
    return metrics.evaluate_preferences(
        {name: s[rows] for name, s in scores.items()},
        answers.liked[rows],
        answers.disliked[rows],
        np.array(answers.users)[rows].tolist(),
        compare,
        weights,
        int(answers.validation.sum()),
        seed=seed,
    )


def _own_scores(answers: Answers, logps: Floats, reference: Floats) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return the scores of a model, by kind, and the weights of its mixtures."""
    reward, rows = logps - reference, answers.validation
    own = {LOGPS: logps, REWARD: reward}
    if not rows.any():
        return own, {}
    kinds = answers.liked[rows], answers.disliked[rows]
    # Ratings and rewards have other units, so both are divided by their deviations within rows.
    present, units = kinds[0] | kinds[1], (answers.references[MEAN_RATING], reward)
    rating, standard = (s / metrics.spread(s[rows], present) for s in units)
    weights: dict[str, float] = {}
    for kind, first, second in ((MIXED, logps, reward), (WITH_RATING, rating, standard)):
        weights[kind] = metrics.best_weight(first[rows], second[rows], *kinds)
        own[kind] = metrics.mixture(first, second, weights[kind])
    return own, weights


def _questions(data: PreparedData, section: AlignSection) -> dict[str, list[PreferenceQuestion]]:
    learn, held_out = data.train_interactions, data.held_out_interactions
    if held_out is None or held_out.is_empty():
        return {}
    judged, length = with_opinions(held_out, learn, section.thresholds), history_length(data)
    users = {part: {e.user_id for e in data.split(part)} for part in ("validation", "test")}
    return {part: preference_questions(learn, judged, own, history_length=length) for part, own in users.items()}


def _ask(
    recipe: Recipe,
    data: PreparedData,
    questions: Mapping[str, Sequence[PreferenceQuestion]],
    models: Sequence[Entry],
    cache: Path,
) -> Answers:
    asked = [q for own in questions.values() for q in own]
    parts = np.array([part for part, own in questions.items() for _ in own])
    examples = [q.example() for q in asked]
    silent = recipe.evaluate.model_copy(update={"generate_rows": 0})
    frames = ask_models(data, silent, models, examples, cache, seed=recipe.seed)
    signs = _padded([[1.0 if liked else -1.0 for liked in q.liked] for q in asked])
    learn = data.train_interactions
    popularity, rating = PopularityRanker.fit(learn).score(examples), mean_rating_scores(learn, examples)
    return Answers(
        {e.name: _padded(f["scores"].to_list()) for e, f in zip(models, frames, strict=True)},
        {POPULARITY: _padded(popularity), MEAN_RATING: _padded(rating)},
        signs > 0,
        signs < 0,
        [q.user_id for q in asked],
        parts == "validation",
        parts == recipe.evaluate.split,
    )


def _padded(rows: Sequence[Sequence[float]] | Floats) -> Floats:
    """Return [B, C] of B rows, with 0 in empty places."""
    scores = pad_scores(list(rows))
    return np.where(np.isneginf(scores), 0.0, scores)
