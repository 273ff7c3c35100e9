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
    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run); default: the served run's first.")
    history: list[ItemName] = Field(max_length=MAX_HISTORY, description="Titles or item ids, oldest first.")


class RankRequest(_Request):
    """A question: what comes next after `history`, of `candidates`?"""

    candidates: Candidates = Field(min_length=1, description="Titles or item ids, each item once.")


class ExplainRequest(_Request):
    """A question: which items of `history` speak for or against `target`?"""

    history: list[ItemName] = Field(
        min_length=1, max_length=MAX_EXPLAINED, description="Titles or item ids, oldest first."
    )
    candidates: Candidates = Field(
        [], description="As for /v1/rank. Without any, the prompt shows none, as for /v1/recommend."
    )
    target: ItemName = Field(description="One of the candidates; any item if no candidates are given.")


class Rules(_Body):
    """Rules of a recommendation: which items may be in it."""

    exclude_seen: bool = Field(True, description="Leave out what the user has taken, and the history.")
    allow: list[Name] | None = Field(None, description="Ids of the only items to recommend.")
    deny: list[Name] = Field([], description="Ids of items to leave out.")
    where: Name | None = Field(
        None, description="SQL condition on the catalogue's columns, such as genre = 'Comedy' and year > 1990."
    )
    at_most: int | None = Field(None, ge=1, description="Items that may have the same value in the column `per`.")
    per: Name | None = Field(None, description="Column of the catalogue, for `at_most`.")


class RecommendRequest(_Request, Rules):
    """A question: what comes next after `history`, of the whole catalogue?"""

    history: list[ItemName] = Field(
        [], max_length=MAX_HISTORY, description="Titles or item ids, oldest first; with a user those after the log."
    )
    user_id: Name | None = Field(None, description="A user, whose items in the run's log come before the history.")
    k: int = Field(10, ge=1, le=MAX_TOP, description="Number of items.")


class ItemBody(_Body, frozen=True):
    """An item of the catalogue."""

    item_id: str
    title: str


class RankedItem(ItemBody):
    """A line of a ranking."""

    rank: int = Field(description="From 1.")
    score: float = Field(
        description="The ranker's; of a language model the log-probability of the title as the answer, end included."
    )
    share: float | None = Field(
        description="Its share among the items of this ranking, which add up to 1; null if no language model ranks."
    )


class RankAnswer(_Body):
    """The candidates, the best first."""

    ranker: str
    history: list[ItemBody] = Field(description="The history as understood.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]


class RecommendAnswer(RankAnswer):
    """The best items of the catalogue that the rules allow."""

    proven: bool = Field(description="True if no other item of the catalogue scores higher.")


class Influence(ItemBody):
    """The effect on the target of leaving one item of the history out."""

    position: int = Field(description="Place in the history, from 0.")
    logp_without: float = Field(description="Log-probability of the target's title without this item.")
    logp_change: float = Field(description="logp − logp_without: positive if the item speaks for the target.")
    share_without: float | None = Field(description="As `share`, without this item.")
    share_change: float | None = Field(description="share − share_without.")


class ExplainAnswer(_Body):
    """The target with the whole history, and the influence of each item of it."""

    ranker: str
    target: ItemBody
    logp: float
    share: float | None = Field(description="The target's share among the candidates, if there are some.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    influences: list[Influence] = Field(description="In the history's order, of the items that fitted.")


class ItemsAnswer(_Body):
    """Items that a search found, the best first."""

    items: list[ItemBody]


class RunAnswer(_Body):
    """The run that is served."""

    run: str
    model: str = Field(description="The base model's name, as in the recipe.")
    rankers: list[str] = Field(description="The first is the default.")
    models: list[str] = Field(description="The language models among them, which /v1/explain takes.")
    items: int = Field(description="Size of the catalogue.")


class ExampleAnswer(_Body):
    """A row of the data under test."""

    row: int
    rows: int = Field(description="How many there are.")
    history: list[ItemBody]
    candidates: list[ItemBody]
    target: ItemBody = Field(description="The item that the user took next.")


class UnknownName(_Body):
    """A name of no item, or of several."""

    given: str
    near: list[ItemBody]


class Problem(_Body):
    """The reason why a request was not answered."""

    code: str = Field(description="For machines, such as `unknown_item` or `queue_full`.")
    message: str = Field(description="For people: what was given, what was expected, what to do.")
    items: list[UnknownName] = Field([], description="With `unknown_item`: the names, and near matches.")


class ProblemAnswer(_Body):
    """The body of every answer from 400 on."""

    error: Problem
