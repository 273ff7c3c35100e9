"""Explain a score by the items of the history: by exact contributions where it is a sum, else by leave-one-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Candidates, Queries, Query
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.base import PartedRanker, PromptedRanker, Ranker, SumRanker, checked_scores

T = TypeVar("T")
EXPLAINED = 50
"""Most effects of an explanation by leave-one-out, those of the last history items: each needs another scoring."""
Titles = Sequence[str]
Method = Literal["contributions", "leave-one-out"]
"""The definition of an effect.

contributions: the score is a sum over history items, and the effect of an item is its term.
leave-one-out: the effect of an item is the score with the whole history, minus the score without the item. Effects do
not add up, because two items with the same information can replace each other.
"""


@dataclass(frozen=True)
class Reasons:
    """The effects of history items on the score of an item.

    Attributes:
        method: how effects are defined.
        score: of the item after the whole history, as in a ranking.
        effects: (item id, effect), oldest item first, of the history items that the ranker reads; by leave-one-out,
            of the last `EXPLAINED` of them.
        rest: of a sum, what does not depend on the history, such as an item's bias; None for leave-one-out.
        parts: for a blend, part → its share in each effect. The shares of all parts add up to the effects.
        not_explained: number of older items that count for the score, and whose effects are not measured.
    """

    method: Method
    score: float
    effects: list[tuple[str, float]]
    rest: float | None = None
    parts: Mapping[str, list[float]] = field(default_factory=dict)
    not_explained: int = 0


def reasons(ranker: Ranker, query: Query, item: str) -> Reasons:
    """Return the effects of history items on the score of an item, by any ranker.

    A title model of a blend only reranks the best items. The blend's effects are those on the utility that reranks
    the item, whether or not it is among the best.

    Args:
        ranker: the ranker.
        query: history and candidates.
        item: the item. Rankers other than language models score it among the candidates; it is added if it is not one
            of them.

    Raises:
        DataError: an item is not in the catalogue of a language model.
        TokenizerError: the prompt does not fit even without a history.
        ModelError: a score is NaN.
    """
    if isinstance(ranker, PromptedRanker):
        return _of_language_model(ranker, query, item)
    if isinstance(ranker, SumRanker):
        terms = ranker.contributions(query.history, item)
        score = float(checked_scores(ranker, [query.among((item,))])[0, 0])
        effects = list(zip(query.history, terms.tolist(), strict=True))
        rest = score - float(terms.sum())
        rounding = 1e-9 * (abs(score) + float(np.abs(terms).sum()))
        return Reasons("contributions", score, effects, rest if abs(rest) > rounding else 0.0)
    if item not in query.candidates:
        query = query.among((*query.candidates, item))
    column = query.candidates.index(item)
    kept = [query]
    for place in range(max(0, len(query.history) - EXPLAINED), len(query.history)):
        history, times = _without(query.history, place), _without(query.history_times, place)
        kept.append(replace(query, history=history, history_times=times))
    rows = Queries(kept, Candidates(query.candidates))
    parts: dict[str, NDArray[np.float64]] = {}
    if isinstance(ranker, PartedRanker):
        score = float(checked_scores(ranker, rows[:1])[0, column])
        parts = {name: _effects(values) for name, values in ranker.terms(rows, item).items()}
        effects_of = np.sum([*parts.values()], axis=0)
    else:
        scores = checked_scores(ranker, rows)[:, column]
        score, effects_of = float(scores[0]), _effects(scores)
    not_explained = len(query.history) - len(effects_of)
    effects = list(zip(query.history[not_explained:], effects_of.tolist(), strict=True))
    shares = {name: part.tolist() for name, part in parts.items()}
    return Reasons("leave-one-out", score, effects, parts=shares, not_explained=not_explained)


def leave_one_out(ranker: PromptedRanker, query: Query, item: str) -> list[tuple[str, float]]:
    """Return how much each history item adds to the log-probability of an item's title, in nats (`reasons`)."""
    return _of_language_model(ranker, query, item).effects


def _of_language_model(ranker: PromptedRanker, query: Query, item: str) -> Reasons:
    """Return the effects of the last history items that fit into the ranker's `max_length`."""
    titles = ranker.catalogue.titles_of
    # Score all candidates, as the ranker does: rounding can depend on what is scored together.
    answers = query.candidates if item in query.candidates else (item,)
    texts = (titles(ids) for ids in (query.history, query.candidates, answers))
    unread, sets = without_each(ranker.encoder, ranker.template, *texts, most=EXPLAINED)
    logps = ranker.choice_logps(sets)[:, answers.index(item)].astype(np.float64)
    first = len(query.history) - (len(sets) - 1)
    effects = list(zip(query.history[first:], _effects(logps).tolist(), strict=True))
    return Reasons("leave-one-out", float(logps[0]), effects, not_explained=first - unread)


def _effects(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return effects [L] of scores [1 + L]: with the whole history, and without each of its items."""
    effects: NDArray[np.float64] = scores[0] - scores[1:]
    return effects


def _without(values: Sequence[T], place: int) -> tuple[T, ...]:
    """Return the values without the one at a place; all, if there are fewer."""
    return (*values[:place], *values[place + 1 :])


def _without_each(history: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Return the history without each of its last `most` items, the oldest of these first."""
    return [_without(history, place) for place in range(max(0, len(history) - most), len(history))]


def without_each(
    encoder: PromptEncoder,
    template: PromptTemplate,
    history: Titles,
    candidates: Titles,
    answers: Titles,
    *,
    most: int,
) -> tuple[int, list[ChoiceSet]]:
    """Return the number of oldest titles that do not fit, and the encoded example: whole, then without a title.

    That title is each of the last `most` that fit, the oldest of these first. Raise TokenizerError if the prompt does
    not fit even without a history.
    """
    whole, unread = encoder.fit(template, history, candidates, answers)
    # A template may show only the last titles. The others have no effect and are skipped.
    while unread < len(history) and encoder.encode(template, history[unread + 1 :], candidates, answers) == whole:
        unread += 1
    # Remove from the titles that fit: a shorter history would otherwise have room for titles that were dropped.
    rest = _without_each(history[unread:], most)
    return unread, [whole, *(encoder.encode(template, titles, candidates, answers) for titles in rest)]
