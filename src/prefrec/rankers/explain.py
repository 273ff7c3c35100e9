"""The effect of each history item on a title's log-probability: the question asked again without the item."""

from __future__ import annotations

import numpy as np

from prefrec.data import RankingExample
from prefrec.rankers.lm import LMRanker


def leave_one_out(ranker: LMRanker, example: RankingExample, target: str | None = None) -> list[tuple[str, float]]:
    """Return how much each history item adds to the target's log-probability, oldest item first.

    The effect of item i is log π(target | whole history) − log π(target | history without i), in nats: above 0 if the
    item speaks for the target. All questions are one packed batch, and show the same candidates. Effects do not add
    up: two items that say the same hide each other.

    Args:
        ranker: the language model asked.
        example: history and candidates.
        target: item id of the title to explain, also one that is not a candidate; None: the example's.

    Returns:
        (item id, effect) of the history items that fit into the ranker's `max_length`; the others were not read.

    Raises:
        DataError: an item is not in the catalogue.
        TokenizerError: the prompt does not fit even without a history.
    """
    titles, encoder = ranker.catalogue.titles_of, ranker.encoder
    candidates, answers = titles(example.candidates), titles([example.target if target is None else target])
    whole, first = encoder.fit(ranker.template, titles(example.history), candidates, answers)
    shown = example.history[first:]
    # A template may itself show only the last items. The hidden ones have no effect and are not listed.
    while shown and encoder.encode(ranker.template, titles(shown[1:]), candidates, answers) == whole:
        shown = shown[1:]
    if not shown:
        return []
    rest = [titles(shown[:i] + shown[i + 1 :]) for i in range(len(shown))]
    # Of what the prompt shows: a shorter history would otherwise have room for items that were dropped.
    sets = [whole, *(encoder.encode(ranker.template, history, candidates, answers) for history in rest)]
    logps = ranker.choice_logps(sets)[:, 0].astype(np.float64)
    return list(zip(shown, (logps[0] - logps[1:]).tolist(), strict=True))
