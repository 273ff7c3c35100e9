"""The effect of each history item on a title's log-probability: the question asked again without the item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefrec.data import RankingExample
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.lm import LMRanker

Titles = Sequence[str]


def leave_one_out(ranker: LMRanker, example: RankingExample, target: str | None = None) -> list[tuple[str, float]]:
    """Return how much each history item adds to the target's log-probability, oldest item first.

    The effect of item i is log π(target | whole history) − log π(target | history without i), in nats. Effects do not
    add up: two items that say the same hide each other. `target` may be any item (None: the example's). The result
    has (item id, effect) of the history items that fit into the ranker's `max_length`; the others were not read.

    Raise DataError if an item is not in the catalogue, TokenizerError if the prompt does not fit without a history.
    """
    titles, target = ranker.catalogue.titles_of, example.target if target is None else target
    # All candidates are scored, as in ranking them: rounding can depend on what is scored together.
    answers = example.candidates if target in example.candidates else (target,)
    asked = (titles(ids) for ids in (example.history, example.candidates, answers))
    unread, sets = without_each(ranker.encoder, ranker.template, *asked)
    logps = ranker.choice_logps(sets)[:, answers.index(target)].astype(np.float64)
    return list(zip(example.history[unread:], (logps[0] - logps[1:]).tolist(), strict=True))


def without_each(
    encoder: PromptEncoder, template: PromptTemplate, history: Titles, candidates: Titles, answers: Titles
) -> tuple[int, list[ChoiceSet]]:
    """Return how many of the oldest titles are not read, and the question: whole, then without each title read.

    Raise TokenizerError if the prompt does not fit even without a history.
    """
    whole, unread = encoder.fit(template, history, candidates, answers)
    # A template may itself show only the last titles. The hidden ones have no effect and are not listed.
    while unread < len(history) and encoder.encode(template, history[unread + 1 :], candidates, answers) == whole:
        unread += 1
    shown = history[unread:]
    # Of what the prompt shows: a shorter history would otherwise have room for titles that were dropped.
    rest = ([*shown[:i], *shown[i + 1 :]] for i in range(len(shown)))
    return unread, [whole, *(encoder.encode(template, titles, candidates, answers) for titles in rest)]
