"""What each history item does to a title's log-probability: the question asked again without the item."""

from __future__ import annotations

import numpy as np

from prefrec.data import RankingExample
from prefrec.prompts import ChoiceSet
from prefrec.rankers.lm import LMRanker


def leave_one_out(ranker: LMRanker, example: RankingExample, target: str | None = None) -> list[tuple[str, float]]:
    """How much each history item adds to the target's log-probability, oldest item first.

    The answer for item i is log π(target | whole history) − log π(target | history without i), in nats: above 0
    where the item speaks for the target. All questions, the whole one and one an item, are one packed batch. The
    candidates shown stay the same. Effects do not add up: two items that say the same hide each other.

    Args:
        ranker: the language model asked.
        example: history and candidates; its own target is read only where `target` is None.
        target: item id of the title to explain, among the candidates or any other of the catalogue.

    Returns:
        (item id, difference) of the history items that the prompt holds. Items that do not fit the ranker's
        `max_length` were not read, and are left out.

    Raises:
        DataError: an item is not in the catalogue.
        TokenizerError: the prompt does not fit even without a history.
    """
    wanted = example.target if target is None else target
    shown = _shown(ranker, example, wanted)
    if not shown:
        return []
    histories = [shown, *(shown[:i] + shown[i + 1 :] for i in range(len(shown)))]
    sets = [_question(ranker, example, history, wanted) for history in histories]
    logps = ranker.choice_logps(sets)[:, 0].astype(np.float64)
    return list(zip(shown, (logps[0] - logps[1:]).tolist(), strict=True))


def _question(ranker: LMRanker, example: RankingExample, history: tuple[str, ...], target: str) -> ChoiceSet:
    titles = ranker.catalogue.titles_of
    return ranker.encoder.encode(ranker.template, titles(history), titles(example.candidates), titles([target]))


def _shown(ranker: LMRanker, example: RankingExample, target: str) -> tuple[str, ...]:
    """The part of the history that the prompt has room for: the oldest items go first."""
    history = example.history
    whole = _question(ranker, example, history, target)
    while history and _question(ranker, example, history[1:], target) == whole:
        history = history[1:]
    return history
