"""Bodies of requests and answers, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_BODY = 1 << 18
"""Bytes of a request's body."""
MAX_HISTORY = 200
MAX_EXPLAINED = 50
"""Items of a history to explain: each is one more prompt to score."""
MAX_EXPLAINED_PAIRS = 1000
"""History items times candidates to explain: so many titles are scored again."""
MAX_CANDIDATES = MAX_TOP = 100
MAX_FOUND = 50
MAX_NAME = 512
"""Characters of a title or id."""
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ById(_Body):
    """An item by its id, for an id that is also another item's title."""

    item_id: Name


ItemName = Name | ById
"""The name of an item in a request: a title or an id, or explicitly an id."""

Candidates = Annotated[list[ItemName], Field(max_length=MAX_CANDIDATES)]


class _Request(_Body):
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


class Rules(_Body):
    """Rules of a recommendation: which items may be in it."""

    exclude_seen: bool = Field(True, description="Leave out the history and all items that the user has seen.")
    allow: list[Name] | None = Field(None, description="Recommend only items with these ids. Default: all.")
    deny: list[Name] = Field([], description="Ids of items to leave out.")
    where: Name | None = Field(
        None, description="SQL condition on the catalogue's columns, such as genre = 'Comedy' and year > 1990."
    )
    at_most: int | None = Field(
        None, ge=1, description="Most items with the same value in the column `per`. Default: no limit."
    )
    per: Name | None = Field(None, description="Catalogue column for `at_most`.")


class RecommendRequest(_Request, Rules):
    """A question: what comes next after `history`, of the whole catalogue?"""

    history: list[ItemName] = Field(
        [],
        max_length=MAX_HISTORY,
        description="Titles or item ids, oldest first. With a user, they follow the user's items in the log.",
    )
    user_id: Name | None = Field(None, description="User whose items in the run's log come before the history.")
    k: int = Field(10, ge=1, le=MAX_TOP, description="Number of items to recommend.")


class ItemBody(_Body, frozen=True):
    """An item of the catalogue."""

    item_id: str
    title: str


class RankedItem(ItemBody):
    """A line of a ranking."""

    rank: int = Field(description="Rank, from 1.")
    score: float = Field(
        description="Score of the ranker; for a language model the log-probability of the title, end token included."
    )
    share: float | None = Field(
        description="Softmax of the scores over this ranking; null unless the ranker is a language model."
    )


class RankAnswer(_Body):
    """The candidates, the best first."""

    ranker: str
    history: list[ItemBody] = Field(description="The history, with names resolved to items.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]


class RecommendAnswer(RankAnswer):
    """The best items of the catalogue that the rules allow."""

    proven: bool = Field(description="True if no other item of the catalogue scores higher.")


class Influence(ItemBody):
    """The effect on the target of leaving one item of the history out."""

    position: int = Field(description="Position in the history, from 0.")
    logp_without: float = Field(description="Log-probability of the target's title without this item.")
    logp_change: float = Field(description="logp − logp_without: positive if the item raises the target's score.")
    share_without: float | None = Field(description="`share` without this item.")
    share_change: float | None = Field(description="share − share_without.")


class ExplainAnswer(_Body):
    """The target with the whole history, and the influence of each item of it."""

    ranker: str
    target: ItemBody
    logp: float
    share: float | None = Field(description="Share of the target among the candidates, if there are any.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    influences: list[Influence] = Field(
        description="Effect of each item that fitted into the prompt, in the order of the history."
    )


class ItemsAnswer(_Body):
    """Items that a search found, the best first."""

    items: list[ItemBody]


class RunAnswer(_Body):
    """The run that is served."""

    run: str
    model: str = Field(description="Name of the base model, as in the recipe.")
    rankers: list[str] = Field(description="Rankers that are served. The first is the default.")
    models: list[str] = Field(description="Language models among them, which /v1/explain takes.")
    items: int = Field(description="Number of items in the catalogue.")


class ExampleAnswer(_Body):
    """A row of the data under test."""

    row: int
    rows: int = Field(description="Number of test examples.")
    history: list[ItemBody]
    candidates: list[ItemBody]
    target: ItemBody = Field(description="Item that the user chose next.")


class UnknownName(_Body):
    """A name of no item, or of several."""

    given: str
    near: list[ItemBody]


class Problem(_Body):
    """The reason why a request was not answered."""

    code: str = Field(description="Code for programs, such as `unknown_item` or `queue_full`.")
    message: str = Field(description="What is wrong, where, and what to do.")
    items: list[UnknownName] = Field([], description="With `unknown_item`: the names, and near matches.")


class ProblemAnswer(_Body):
    """The body of every answer from 400 on."""

    error: Problem
