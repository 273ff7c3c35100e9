"""How well a run's models tell what users liked from what they disliked, where its alignment learns from ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefrec.console import say
from prefrec.data import PreparedData
from prefrec.data.preferences import (
    PreferenceQuestion,
    mean_rating_scores,
    popularity_scores,
    preference_questions,
    with_opinions,
)
from prefrec.evaluation.preferences import (
    RATING_WEIGHTS,
    WEIGHTS,
    Floats,
    Mask,
    Preferences,
    best_weight,
    evaluate_preferences,
    mixture,
    spread,
)
from prefrec.pipeline.entry import Entry, lm_entry
from prefrec.pipeline.log_negatives import history_length
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, AlignSection, Recipe
from prefrec.pipeline.score import ask_models

POPULARITY, MEAN_RATING = "popularity", "mean rating"
LOGPS, REWARD, MIXED, WITH_RATING = "log π", "reward", "log π + λ·reward", "mean rating + λ·reward"


@dataclass(frozen=True)
class Answers:
    """What is known of B questions of up to C items: [B, C] arrays, 0 in empty places.

    Attributes:
        logps: name of a language model → log-probabilities.
        references: name → scores of `popularity` and `mean rating`.
        liked, disliked: which places hold such items.
        users: of each question.
        validation: whether a question chooses weights.
        tested: whether a question is under test.
    """

    logps: Mapping[str, Floats]
    references: Mapping[str, Floats]
    liked: Mask
    disliked: Mask
    users: list[str]
    validation: Mask
    tested: Mask


def run_preferences(recipe: Recipe, data: PreparedData, entries: Sequence[Entry], cache: Path) -> Preferences | None:
    """Return how well the run's scores tell liked items from disliked ones; None where that is not asked, or unknown.

    It is asked where an alignment has `negatives_from: rated`, by the thresholds of the first that has.

    Args:
        recipe: of the run.
        data: prepared rows.
        entries: rankers of the run; SFT (or the bare base, where there is none) and the alignments are asked.
        cache: folder; answers already there are not asked for again.
    """
    section = next((a for a in recipe.align if a.negatives_from == "rated"), None)
    if section is None:
        return None
    questions = _questions(data, section)
    tested = questions.get(recipe.evaluate.split, [])
    if not tested:
        say(
            f"preferences: not measured, as no {recipe.evaluate.split} user has liked and disliked items after the "
            "training part (`split: time-share` in `data` holds out a fifth of each user's log)"
        )
        return None
    start = _start(recipe, data, entries)
    aligned = [e for e in entries if e.name in {a.name for a in recipe.align}]
    answers = _ask(recipe, data, questions, [start, *aligned], cache)
    starts = {a.name: a.start or start.name for a in recipe.align}
    return measure(answers, start.name, {e.name: starts[e.name] for e in aligned}, seed=recipe.seed)


def measure(answers: Answers, first: str, aligned: Mapping[str, str], *, seed: int) -> Preferences:
    """Return metrics of each model's log π, reward and mixtures, and of the references, on questions under test.

    The reward is log π − log π_ref, where the reference is what the alignment went on from. Weights of mixtures are
    those with the highest AUC on validation questions; where there are none, no mixture is made.

    Args:
        answers: of the models and references.
        first: name of the model before all alignment.
        aligned: name of each aligned model → name of its reference.
        seed: of the bootstrap.
    """
    start = f"{first}: {LOGPS}"
    scores = {start: answers.logps[first], **answers.references}
    weights: dict[str, float] = {}
    compare: list[tuple[str, str]] = []
    for name, reference in aligned.items():
        own, chosen = _of_model(answers, answers.logps[name], answers.logps[reference])
        scores |= {f"{name}: {kind}": s for kind, s in own.items()}
        weights |= {f"{name}: {kind}": weight for kind, weight in chosen.items()}
        compare += [(f"{name}: {kind}", start) for kind in (LOGPS, REWARD, MIXED) if kind in own]
        compare += [(f"{name}: {REWARD}", other) for other in answers.references]
        compare += [(f"{name}: {kind}", MEAN_RATING) for kind in (WITH_RATING,) if kind in own]
    rows = answers.tested
    return evaluate_preferences(
        {name: s[rows] for name, s in scores.items()},
        answers.liked[rows],
        answers.disliked[rows],
        [user for user, here in zip(answers.users, rows.tolist(), strict=True) if here],
        compare,
        weights,
        int(answers.validation.sum()),
        seed=seed,
    )


def _of_model(answers: Answers, logps: Floats, reference: Floats) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return the scores that a model and its reference give, by kind, and the weights that were chosen for them.

    Mean ratings and rewards are divided by their deviations within the rows of validation questions.
    """
    reward, rows = logps - reference, answers.validation
    own = {LOGPS: logps, REWARD: reward}
    if not rows.any():
        return own, {}
    there = (answers.liked | answers.disliked)[rows]
    rating, standard = (s / spread(s[rows], there) for s in (answers.references[MEAN_RATING], reward))
    kinds = answers.liked[rows], answers.disliked[rows]
    weights = {
        MIXED: best_weight(logps[rows], reward[rows], *kinds, WEIGHTS),
        WITH_RATING: best_weight(rating[rows], standard[rows], *kinds, RATING_WEIGHTS),
    }
    own[MIXED] = mixture(logps, reward, weights[MIXED])
    own[WITH_RATING] = mixture(rating, standard, weights[WITH_RATING])
    return own, weights


def _questions(data: PreparedData, section: AlignSection) -> dict[str, list[PreferenceQuestion]]:
    """Return the questions of validation users and of test users."""
    learn, held_out = data.train_interactions, data.held_out_interactions
    if held_out is None or held_out.is_empty():
        return {}
    judged = with_opinions(held_out, learn, section.thresholds)
    return {
        part: preference_questions(
            learn, judged, {e.user_id for e in data.split(part)}, history_length=history_length(data)
        )
        for part in ("validation", "test")
    }


def _start(recipe: Recipe, data: PreparedData, entries: Sequence[Entry]) -> Entry:
    """Return the model that alignments go on from: SFT, or the bare base."""
    found = [e for e in entries if e.name == SFT]
    return found[0] if found and recipe.sft else lm_entry(ZERO_SHOT, None, data, recipe.model)


def _ask(
    recipe: Recipe,
    data: PreparedData,
    questions: Mapping[str, Sequence[PreferenceQuestion]],
    models: Sequence[Entry],
    cache: Path,
) -> Answers:
    """Return what models and references say to all questions."""
    of_part = [(part, q) for part, asked in questions.items() for q in asked]
    examples = [q.example() for _, q in of_part]
    silent = recipe.evaluate.model_copy(update={"generate_rows": 0})
    frames = ask_models(data, silent, models, examples, cache, seed=recipe.seed)
    signs = _padded([[1.0 if liked else -1.0 for liked in q.liked] for _, q in of_part])
    parts = np.array([part for part, _ in of_part])
    learn = data.train_interactions
    return Answers(
        {e.name: _padded(f["scores"].to_list()) for e, f in zip(models, frames, strict=True)},
        {
            POPULARITY: _padded(popularity_scores(learn, examples)),
            MEAN_RATING: _padded(mean_rating_scores(learn, examples)),
        },
        signs > 0,
        signs < 0,
        [q.user_id for _, q in of_part],
        parts == "validation",
        parts == recipe.evaluate.split,
    )


def _padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return [B, C] of B rows, with 0 in empty places."""
    out = np.zeros((len(rows), max(map(len, rows))))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
