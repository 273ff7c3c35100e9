"""Bodies of requests and answers, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from prefrec.recommend.rules import Item, ItemName, Name, Rules, Strict, UnknownName

MAX_BODY = 1 << 18
"""Bytes of a request's body."""
MAX_HISTORY = 200
MAX_EXPLAINED = 50
"""Items of a history to explain: each is one more prompt to score."""
MAX_EXPLAINED_PAIRS = 1000
"""History items times candidates to explain: so many titles are scored again."""
MAX_CANDIDATES = MAX_TOP = 100
MAX_FOUND = 50
Candidates = Annotated[list[ItemName], Field(max_length=MAX_CANDIDATES)]


class _Request(Strict):
    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run). Default: the first one served.")
    history: list[ItemName] = Field(max_length=MAX_HISTORY, description="Titles or item ids, oldest first.")


class RankRequest(_Request):
    """A question: what comes next after `history`, of `candidates`?"""

    candidates: Candidates = Field(min_length=1, description="Titles or item ids to rank, each item once.")


class ExplainRequest(_Request):
    """A question: which items of `history` speak for or against `target`?"""

    history: list[ItemName] = Field(
        min_length=1, max_length=MAX_EXPLAINED, description="Titles or item ids, oldest first."
    )
    candidates: Candidates = Field(
        [], description="As for /v1/rank. If empty, the prompt shows no candidates, as for /v1/recommend."
    )
    target: ItemName = Field(description="Item to explain: one of the candidates, or any item if there are none.")


class RecommendRequest(_Request, Rules):
    """A question: what comes next after `history`, of the whole catalogue?"""

    history: list[ItemName] = Field(
        [],
        max_length=MAX_HISTORY,
        description="Titles or item ids, oldest first. With a user, they follow the user's items in the log.",
    )
    user_id: Name | None = Field(None, description="User whose items in the run's log come before the history.")
    k: int = Field(10, ge=1, le=MAX_TOP, description="Number of items to recommend.")


class RankedItem(Item):
    """A line of a ranking."""

    rank: int = Field(description="Rank, from 1.")
    score: float = Field(
        description="Score of the ranker; for a language model the log-probability of the title, end token included."
    )
    share: float | None = Field(
        description="Softmax of the scores over this ranking; null unless the ranker is a language model."
    )


class RankAnswer(Strict):
    """The candidates, the best first."""

    ranker: str
    history: list[Item] = Field(description="The history, with names resolved to items.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]


class RecommendAnswer(RankAnswer):
    """The best items of the catalogue that the rules allow."""

    exact: bool = Field(description="True if no other item of the catalogue scores higher.")


class Influence(Item):
    """The effect on the target of leaving one item of the history out."""

    position: int = Field(description="Position in the history, from 0.")
    logp_without: float = Field(description="Log-probability of the target's title without this item.")
    logp_change: float = Field(description="logp − logp_without: positive if the item raises the target's score.")
    share_without: float | None = Field(description="`share` without this item.")
    share_change: float | None = Field(description="share − share_without.")


class ExplainAnswer(Strict):
    """The target with the whole history, and the influence of each item of it."""

    ranker: str
    target: Item
    logp: float
    share: float | None = Field(description="Share of the target among the candidates, if there are any.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    influences: list[Influence] = Field(
        description="Effect of each item that fitted into the prompt, in the order of the history."
    )


class ItemsAnswer(Strict):
    """Items that a search found, the best first."""

    items: list[Item]


class UsersAnswer(Strict):
    """Users of the log whose ids begin with what was asked."""

    users: list[str]


class RunAnswer(Strict):
    """The run that is served."""

    run: str
    model: str = Field(description="Name of the base model, as in the recipe.")
    rankers: list[str] = Field(description="Rankers that are served. The first is the default.")
    models: list[str] = Field(description="Language models among them, which /v1/explain takes.")
    items: int = Field(description="Number of items in the catalogue.")


class ExampleAnswer(Strict):
    """A row of the data under test."""

    row: int
    rows: int = Field(description="Number of test examples.")
    history: list[Item]
    candidates: list[Item]
    target: Item = Field(description="Item that the user chose next.")


class Problem(Strict):
    """The reason why a request was not answered."""

    code: str = Field(description="Code for programs, such as `unknown_item` or `queue_full`.")
    message: str = Field(description="What is wrong, where, and what to do.")
    items: list[UnknownName] = Field([], description="With `unknown_item`: the names, and near matches.")


class ProblemAnswer(Strict):
    """The body of every answer from 400 on."""

    error: Problem
