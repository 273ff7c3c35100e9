"""Explain a score by leave-one-out: a title's log-probability with and without each history item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefrec.data import RankingExample
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.lm import LMRanker

Titles = Sequence[str]


def leave_one_out(ranker: LMRanker, example: RankingExample) -> list[tuple[str, float]]:
    """Return how much each history item adds to the target's log-probability.

    The effect of item i is log π(target | history) − log π(target | history without i), in nats. Effects do not add
    up, because two items with the same information can replace each other.

    Args:
        example: history, candidates, and as the target any item.

    Returns:
        (item id, effect), oldest item first, of the history items that fit into the ranker's `max_length`.

    Raises:
        DataError: an item is not in the catalogue.
        TokenizerError: the prompt does not fit even without a history.
    """
    titles, target = ranker.catalogue.titles_of, example.target
    # Score all candidates, as the ranker does: rounding can depend on what is scored together.
    answers = example.candidates if target in example.candidates else (target,)
    texts = (titles(ids) for ids in (example.history, example.candidates, answers))
    unread, sets = without_each(ranker.encoder, ranker.template, *texts)
    logps = ranker.choice_logps(sets)[:, answers.index(target)].astype(np.float64)
    return list(zip(example.history[unread:], (logps[0] - logps[1:]).tolist(), strict=True))


def without_each(
    encoder: PromptEncoder, template: PromptTemplate, history: Titles, candidates: Titles, answers: Titles
) -> tuple[int, list[ChoiceSet]]:
    """Return the number of oldest titles that do not fit, and the encoded example: whole, then without each title.

    Raise TokenizerError if the prompt does not fit even without a history.
    """
    whole, unread = encoder.fit(template, history, candidates, answers)
    # A template may show only the last titles. The others have no effect and are skipped.
    while unread < len(history) and encoder.encode(template, history[unread + 1 :], candidates, answers) == whole:
        unread += 1
    shown = history[unread:]
    # Remove from the titles that fit: a shorter history would otherwise have room for titles that were dropped.
    rest = ([*shown[:i], *shown[i + 1 :]] for i in range(len(shown)))
    return unread, [whole, *(encoder.encode(template, titles, candidates, answers) for titles in rest)]
