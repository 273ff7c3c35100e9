"""How well models rank liked items above disliked ones, for runs with an alignment on ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.data.feedback import (
    PreferenceQuestion,
    RatedBy,
    centred_mean_scores,
    mean_rating_scores,
    preference_questions,
    with_opinions,
)
from prefrec.evaluation.preferences import (
    ITEM_AUC,
    Floats,
    Mask,
    Preferences,
    best_weight,
    evaluate_preferences,
    mixture,
    personal_part,
    spread,
    within_item_auc,
)
from prefrec.pipeline.score import predict_stages
from prefrec.rankers import PopularityRanker
from prefrec.rankers.matrices import pad_scores
from prefrec.recipe import Recipe
from prefrec.sections import SFT, ZERO_SHOT, AlignSection
from prefrec.stages.base import RankerStage
from prefrec.stages.language_model import LMStage

POPULARITY, MEAN_RATING, CENTRED = "popularity", "mean rating", "user-centred item mean"
"""Scores that do not depend on the user. Every model is compared with the last one."""
LOGPS, REWARD, WITH_CENTRED = "log π", "reward", f"{CENTRED} + λ·reward"
SWAPPED, PERSONAL = "reward, histories swapped", "reward − its mean over users"
SWAPS = 8
"""Number of other users whose histories replace a user's history."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Scores of B questions with up to C items: [B, C] arrays, 0 in empty columns.

    Attributes:
        logps: name of a model → its log π.
        references: name → scores that do not depend on the user.
        swapped: name of a model → log π [K, B, C] after the histories of K other users, for questions under test.
        liked, disliked: masks of liked and of disliked items.
        items: ids of the items of each question [B].
        users: user of each question [B].
        validation: mask [B] of the questions that choose weights.
        tested: mask [B] of the questions under test.
    """

    logps: Mapping[str, Floats]
    references: Mapping[str, Floats]
    swapped: Mapping[str, Floats]
    liked: Mask
    disliked: Mask
    items: list[Sequence[str]]
    users: list[str]
    validation: Mask
    tested: Mask


def run_preferences(
    recipe: Recipe, data: PreparedData, stages: Sequence[RankerStage], cache: Path
) -> Preferences | None:
    """Return how well SFT (or the base model) and the alignments tell liked from disliked items.

    The first alignment with `negatives_from: rated` sets the thresholds. Return None without such an alignment, or
    without questions. Predictions are kept in the folder `cache`.
    """
    section = next((a for a in recipe.align if a.negatives_from == "rated"), None)
    if section is None:
        return None
    questions = _questions(data, section)
    if not questions.get(recipe.evaluate.split):
        say(
            f"preferences: not measured, because no {recipe.evaluate.split} user has both liked and disliked items "
            "after the training part; `data.split: time-share` holds out a fifth of each user's log"
        )
        return None
    sft = next((stage for stage in stages if stage.name == SFT), None) if recipe.sft else None
    start = sft or LMStage(ZERO_SHOT, None, data, recipe.model)
    references = {align.name: align.start or start.name for align in recipe.align}
    aligned = [stage for stage in stages if stage.name in references]
    # Questions are also about validation users, whose opinions a refit has learnt.
    models = [stage.on("validation") for stage in (start, *aligned)]
    answers = _answers(recipe, data, questions, models, cache, section.rated_by)
    return measure(answers, start.name, {stage.name: references[stage.name] for stage in aligned})


def measure(answers: Answers, first: str, aligned: Mapping[str, str | None]) -> Preferences:
    """Return metrics on questions under test, of each model's log π, reward and mixture, and of `answers.references`.

    The reward is log π − log π_ref. Mixtures need validation questions, which choose their weights (`best_weight`).
    Swapped histories need at least two questions under test.

    Args:
        answers: scores of all questions.
        first: name of the model before any alignment.
        aligned: name of each aligned model → name of its reference; None: it is not among the models, so that the
            model has no reward here.
    """
    start = f"{first}: {LOGPS}"
    rows = answers.tested
    scores = {start: answers.logps[first], **answers.references}
    scores = {name: s[rows] for name, s in scores.items()}
    weights: dict[str, float] = {}
    compare: list[tuple[str, str]] = []
    for name, reference in aligned.items():
        by_kind, chosen = _model_scores(answers, name, reference)
        scores |= {f"{name}: {kind}": s for kind, s in by_kind.items()}
        weights |= {f"{name}: {kind}": weight for kind, weight in chosen.items()}
        rivals = {LOGPS: [start], REWARD: [start, CENTRED, f"{name}: {SWAPPED}"], WITH_CENTRED: [CENTRED]}
        compare += [(f"{name}: {kind}", other) for kind in by_kind for other in rivals.get(kind, [])]
    rewards = [f"{name}: {REWARD}" for name, reference in aligned.items() if reference]
    compare += [(rewards[0], other) for other in rewards[1:]]
    kinds = (answers.liked[rows], answers.disliked[rows])
    validation = int(answers.validation.sum())
    users = np.array(answers.users)[rows].tolist()
    items = [answers.items[n] for n in np.flatnonzero(rows)]
    result = evaluate_preferences(scores, *kinds, users, compare, weights, validation)
    for name in (f"{name}: {PERSONAL}" for name in aligned):
        if name in scores and (over_users := within_item_auc(scores[name], *kinds, items)).n:
            result.metrics[name][ITEM_AUC] = over_users
    return result


def _model_scores(answers: Answers, name: str, reference: str | None) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return the scores of a model on questions under test, by kind, and the weights of its mixtures."""
    logps = answers.logps[name]
    rows = answers.tested
    if reference is None:
        return {LOGPS: logps[rows]}, {}
    reward = logps - answers.logps[reference]
    chooses = answers.validation
    scores = {LOGPS: logps[rows], REWARD: reward[rows]}
    weights: dict[str, float] = {}
    if chooses.any():
        kinds = answers.liked[chooses], answers.disliked[chooses]
        # Ratings and rewards have different units, so each is divided by its standard deviation within questions.
        both = (answers.references[CENTRED], reward)
        mean, standard = (s / spread(s[chooses], kinds[0] | kinds[1]) for s in both)
        weights[WITH_CENTRED] = best_weight(mean[chooses], standard[chooses], *kinds)
        scores[WITH_CENTRED] = mixture(mean, standard, weights[WITH_CENTRED])[rows]
    if name in answers.swapped:
        swapped = answers.swapped[name] - answers.swapped[reference]
        present = answers.liked[rows] | answers.disliked[rows]
        scores |= {SWAPPED: swapped, PERSONAL: personal_part(reward[rows], swapped, present)}
    return scores, weights


def _questions(data: PreparedData, section: AlignSection) -> dict[str, list[PreferenceQuestion]]:
    learn = data.train_interactions
    held_out = data.held_out_interactions
    if held_out is None or held_out.is_empty():
        return {}
    judged = with_opinions(held_out, learn, section.thresholds)
    questions = {}
    for part in ("validation", "test"):
        users = {e.user_id for e in data.split(part)}
        questions[part] = preference_questions(learn, judged, users, history_length=data.history_length)
    return questions


def _answers(
    recipe: Recipe,
    data: PreparedData,
    questions: Mapping[str, Sequence[PreferenceQuestion]],
    models: Sequence[RankerStage],
    cache: Path,
    by: RatedBy,
) -> Answers:
    everything = [q for of_part in questions.values() for q in of_part]
    parts = np.array([part for part, of_part in questions.items() for _ in of_part])
    examples = [q.example() for q in everything]
    tested = parts == recipe.evaluate.split
    swapped = swapped_histories([examples[n] for n in np.flatnonzero(tested)])
    silent = recipe.evaluate.model_copy(update={"generate_rows": 0})
    frames = predict_stages(data, silent, models, [*examples, *swapped], cache, seed=recipe.seed)
    scores = {e.name: _padded(f["scores"].to_list()) for e, f in zip(models, frames, strict=True)}
    signs = _padded([[1.0 if liked else -1.0 for liked in q.liked] for q in everything])
    learn = data.train_interactions
    n, width = signs.shape
    of_swapped: dict[str, Floats] = {}
    if swapped:
        of_swapped = {name: s[n:].reshape(-1, int(tested.sum()), width) for name, s in scores.items()}
    references: dict[str, Any] = {
        POPULARITY: PopularityRanker.fit(learn).score(examples),
        MEAN_RATING: mean_rating_scores(learn, examples),
        CENTRED: centred_mean_scores(learn, examples, by),
    }
    return Answers(
        {name: s[:n] for name, s in scores.items()},
        {name: _padded(s) for name, s in references.items()},
        of_swapped,
        signs > 0,
        signs < 0,
        [q.candidates for q in everything],
        [q.user_id for q in everything],
        parts == "validation",
        tested,
    )


def swapped_histories(rows: Sequence[RankingExample], seed: int = 0) -> list[RankingExample]:
    """Return all B rows up to `SWAPS` times, each time with the histories of other rows.

    In a random order of the rows, the k-th time a row gets the history of the row k further on, without its own
    candidates. With B ≤ `SWAPS` rows there are B − 1 times.
    """
    order = np.random.default_rng((seed, 6)).permutation(len(rows))
    swapped = []
    for k in range(1, min(SWAPS, len(rows) - 1) + 1):
        other = dict(zip(order.tolist(), np.roll(order, -k).tolist(), strict=True))
        for n, row in enumerate(rows):
            history = rows[other[n]].history
            kept = tuple(i for i in history if i not in row.candidates)
            swapped.append(replace(row, history=kept or history, history_times=()))
    return swapped


def _padded(rows: Sequence[Sequence[float]] | Floats) -> Floats:
    """Return B rows as one array [B, C], with 0 in empty columns."""
    scores = pad_scores(list(rows))
    return np.where(np.isneginf(scores), 0.0, scores)
