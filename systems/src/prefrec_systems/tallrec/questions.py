"""Likes and dislikes from ratings, and training examples as questions with the answer Yes or No."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from prefrec.data import Query, RankingExample


@dataclass(frozen=True, slots=True)
class Question:
    """The question whether a user will like an item.

    Attributes:
        history: (item id, liked), oldest first.
        item: item id.
        liked: the answer; None if it is not needed, as in scoring.
    """

    history: tuple[tuple[str, bool], ...]
    item: str
    liked: bool | None = None


class Opinions:
    """Items that users disliked in the training interactions. All others, also unrated ones, count as liked.

    Args:
        interactions: frame `user_id, item_id[, rating]` of training interactions.
        threshold: lowest rating that counts as liked.
    """

    def __init__(self, interactions: pl.DataFrame, threshold: float) -> None:
        self._disliked: set[tuple[str, str]] = set()
        if "rating" in interactions.columns:
            low = interactions.filter(pl.col("rating") < threshold)
            self._disliked = set(low.select("user_id", "item_id").iter_rows())

    def liked(self, user: str | None, item: str) -> bool:
        """Return True if a user liked an item that the user interacted with."""
        return (user, item) not in self._disliked

    def __bool__(self) -> bool:  # True if there are dislikes
        return bool(self._disliked)


def history_of(query: Query, opinions: Opinions) -> tuple[tuple[str, bool], ...]:
    """Return (item id, liked) of a query's history, oldest first."""
    return tuple((item, opinions.liked(query.user_id, item)) for item in query.history)


def training_questions(
    examples: Sequence[RankingExample], opinions: Opinions, *, negatives: int, seed: int
) -> list[Question]:
    """Return the questions of training examples, with their answers.

    If the log has dislikes, there is one question per example, about its target, answered by the target's rating.
    Otherwise there is one about the target (Yes), and `negatives` about other candidates, which are unseen (No). They
    are sampled by seed and example only.
    """
    questions = []
    for row, example in enumerate(examples):
        history = history_of(example, opinions)
        questions.append(Question(history, example.target, opinions.liked(example.user_id, example.target)))
        if not opinions:
            others = [c for c in example.candidates if c != example.target]
            drawn = np.random.default_rng((seed, row)).permutation(len(others))[:negatives]
            questions += [Question(history, others[i], False) for i in drawn.tolist()]
    return questions
