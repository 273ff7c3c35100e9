"""Metrics of liked over disliked items, for runs with an alignment on ratings."""

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
from prefrec.pipeline.entry import Entry, lm_entry
from prefrec.pipeline.negatives import history_length
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, AlignSection, Recipe
from prefrec.pipeline.score import predict_entries
from prefrec.rankers import PopularityRanker
from prefrec.rankers.matrices import pad_scores

POPULARITY, MEAN_RATING, CENTRED = "popularity", "mean rating", "user-centred item mean"
"""Scores that know no user. The last one is the rival of every model."""
LOGPS, REWARD, WITH_CENTRED = "log π", "reward", f"{CENTRED} + λ·reward"
SWAPPED, PERSONAL = "reward, histories swapped", "reward − its mean over users"
SWAPS = 8
"""Other users whose histories take the place of a user's own."""


@dataclass(frozen=True)
class Answers:
    """Answers to B questions of up to C items: [B, C] arrays, 0 in empty places.

    `logps` and `references` are scores by name, and `swapped` [K, B, C] log π after the histories of K other users,
    for questions under test. `liked` and `disliked` mark places of such items, which `items` [B] names; `validation`
    and `tested` [B] mark questions that choose weights and questions under test.
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
    answers = _ask(recipe, data, questions, [start, *aligned], cache, section.rated_by)
    return measure(answers, start.name, {e.name: references[e.name] for e in aligned})


def measure(answers: Answers, first: str, aligned: Mapping[str, str]) -> Preferences:
    """Return metrics of each model's log π, reward and mixture, and of the references, on questions under test.

    The reward is log π − log π_ref. Without validation questions, which choose weights (`best_weight`), there are no
    mixtures, and with one question under test no swapped histories. `first` is the model before all alignment;
    `aligned` maps each aligned model to its reference.
    """
    start, rows = f"{first}: {LOGPS}", answers.tested
    scores = {start: answers.logps[first], **answers.references}
    scores = {name: s[rows] for name, s in scores.items()}
    weights: dict[str, float] = {}
    compare: list[tuple[str, str]] = []
    for name, reference in aligned.items():
        own, chosen = _own_scores(answers, name, reference)
        scores |= {f"{name}: {kind}": s for kind, s in own.items()}
        weights |= {f"{name}: {kind}": weight for kind, weight in chosen.items()}
        rivals = {LOGPS: [start], REWARD: [start, CENTRED, f"{name}: {SWAPPED}"], WITH_CENTRED: [CENTRED]}
        compare += [(f"{name}: {kind}", other) for kind in own for other in rivals.get(kind, [])]
    main, *others = (f"{name}: {REWARD}" for name in aligned)
    compare += [(main, other) for other in others]
    kinds, validation = (answers.liked[rows], answers.disliked[rows]), int(answers.validation.sum())
    users, items = np.array(answers.users)[rows].tolist(), [answers.items[n] for n in np.flatnonzero(rows)]
    found = evaluate_preferences(scores, *kinds, users, compare, weights, validation)
    for name in (f"{name}: {PERSONAL}" for name in aligned):
        if name in scores and (over_users := within_item_auc(scores[name], *kinds, items)).n:
            found.metrics[name][ITEM_AUC] = over_users
    return found


def _own_scores(answers: Answers, name: str, reference: str) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return the scores of a model on questions under test, by kind, and the weights of its mixtures."""
    logps = answers.logps[name]
    reward, rows, asked = logps - answers.logps[reference], answers.tested, answers.validation
    own, weights = {LOGPS: logps[rows], REWARD: reward[rows]}, {}
    if asked.any():
        kinds = answers.liked[asked], answers.disliked[asked]
        # Ratings and rewards have other units, so both are divided by their deviations within rows.
        both = (answers.references[CENTRED], reward)
        mean, standard = (s / spread(s[asked], kinds[0] | kinds[1]) for s in both)
        weights[WITH_CENTRED] = best_weight(mean[asked], standard[asked], *kinds)
        own[WITH_CENTRED] = mixture(mean, standard, weights[WITH_CENTRED])[rows]
    if name in answers.swapped:
        swapped = answers.swapped[name] - answers.swapped[reference]
        present = answers.liked[rows] | answers.disliked[rows]
        own |= {SWAPPED: swapped, PERSONAL: personal_part(reward[rows], swapped, present)}
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
    by: RatedBy,
) -> Answers:
    asked = [q for own in questions.values() for q in own]
    parts = np.array([part for part, own in questions.items() for _ in own])
    examples = [q.example() for q in asked]
    swapped = swapped_histories([e for e, p in zip(examples, parts, strict=True) if p == recipe.evaluate.split])
    silent = recipe.evaluate.model_copy(update={"generate_rows": 0})
    frames = predict_entries(data, silent, models, [*examples, *swapped], cache, seed=recipe.seed)
    said = {e.name: _padded(f["scores"].to_list()) for e, f in zip(models, frames, strict=True)}
    signs = _padded([[1.0 if liked else -1.0 for liked in q.liked] for q in asked])
    learn, (n, width), tested = data.train_interactions, signs.shape, parts == recipe.evaluate.split
    references: dict[str, Any] = {
        POPULARITY: PopularityRanker.fit(learn).score(examples),
        MEAN_RATING: mean_rating_scores(learn, examples),
        CENTRED: centred_mean_scores(learn, examples, by),
    }
    return Answers(
        {name: s[:n] for name, s in said.items()},
        {name: _padded(s) for name, s in references.items()},
        {name: s[n:].reshape(-1, int(tested.sum()), width) for name, s in said.items() if swapped},
        signs > 0,
        signs < 0,
        [q.candidates for q in asked],
        [q.user_id for q in asked],
        parts == "validation",
        tested,
    )


def swapped_histories(rows: Sequence[RankingExample], seed: int = 0) -> list[RankingExample]:
    """Return each row `SWAPS` times, with histories of as many others: first all rows once, then all again.

    In a random order of the rows, the k-th history is that of the row k places further on, without the row's
    candidates. Fewer rows have fewer others.
    """
    order = np.random.default_rng((seed, 6)).permutation(len(rows))
    swapped = []
    for k in range(1, min(SWAPS, len(rows) - 1) + 1):
        other = dict(zip(order.tolist(), np.roll(order, -k).tolist(), strict=True))
        for n, row in enumerate(rows):
            history = rows[other[n]].history
            kept = tuple(i for i in history if i not in row.candidates)
            swapped.append(replace(row, history=kept or history))
    return swapped


def _padded(rows: Sequence[Sequence[float]] | Floats) -> Floats:
    """Return [B, C] of B rows, with 0 in empty places."""
    scores = pad_scores(list(rows))
    return np.where(np.isneginf(scores), 0.0, scores)
