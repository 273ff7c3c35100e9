"""What goes over the wire: bodies of requests and answers, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_BODY = 1 << 18
"""Bytes of a request's body."""

MAX_HISTORY = 200
MAX_EXPLAINED = 50
"""Items of a history that is explained: each is one more prompt to score."""

MAX_CANDIDATES = 100
MAX_TOP = 100
MAX_FOUND = 50
MAX_NAME = 512
"""Characters of a title or id."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ById(_Body):
    """An item by its id, where a text might be another item's title."""

    item_id: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


ItemName = Name | ById
"""How requests name an item: a title or an id, or surely an id."""


class _Request(_Body):
    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run); default: the served run's first.")


class RankRequest(_Request):
    """A question: what comes next after `history`, of `candidates`?"""

    history: list[ItemName] = Field(max_length=MAX_HISTORY, description="Titles or item ids, oldest first.")
    candidates: list[ItemName] = Field(
        min_length=1, max_length=MAX_CANDIDATES, description="Titles or item ids, each item once."
    )


class ExplainRequest(_Request):
    """Which items of `history` speak for or against `target`?"""

    history: list[ItemName] = Field(
        min_length=1, max_length=MAX_EXPLAINED, description="Titles or item ids, oldest first."
    )
    candidates: list[ItemName] = Field(
        [],
        max_length=MAX_CANDIDATES,
        description="As for /v1/rank; none: the prompt shows none, as for /v1/recommend.",
    )
    target: ItemName = Field(description="One of the candidates; any item where there are none.")


class RecommendRequest(_Request):
    """What comes next after `history`, of the whole catalogue?"""

    history: list[ItemName] = Field(max_length=MAX_HISTORY, description="Titles or item ids, oldest first.")
    k: int = Field(10, ge=1, le=MAX_TOP, description="Number of items.")


class ItemBody(_Body):
    """An item of the catalogue."""

    item_id: str
    title: str


class RankedItem(ItemBody):
    """A line of a ranking."""

    rank: int = Field(description="From 1.")
    logp: float = Field(description="Log-probability of the title as the answer, end token included.")
    probability: float = Field(description="Its share among the items of this ranking; these add up to 1.")


class RankAnswer(_Body):
    """The candidates, the likeliest first."""

    ranker: str
    history: list[ItemBody] = Field(description="The history as understood.")
    history_shortened: bool = Field(description="True where the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]


class RecommendAnswer(_Body):
    """The likeliest items of the catalogue that are not in the history."""

    ranker: str
    history: list[ItemBody] = Field(description="The history as understood.")
    history_shortened: bool = Field(description="True where the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]
    proven: bool = Field(description="True where no other item of the catalogue scores higher.")


class Influence(ItemBody):
    """What leaving one item of the history out does to the target."""

    position: int = Field(description="Place in the history, from 0.")
    logp_without: float = Field(description="Log-probability of the target's title without this item.")
    logp_change: float = Field(description="logp − logp_without: positive where the item speaks for the target.")
    probability_without: float | None = Field(description="As `probability`, without this item.")
    probability_change: float | None = Field(description="probability − probability_without.")


class ExplainAnswer(_Body):
    """The target with the whole history, and the influence of each item of it."""

    ranker: str
    target: ItemBody
    logp: float
    probability: float | None = Field(description="The target's share among the candidates, where there are some.")
    history_shortened: bool = Field(description="True where the oldest items did not fit into the prompt.")
    influences: list[Influence] = Field(description="In the history's order, of the items that fitted.")


class ItemsAnswer(_Body):
    """Items that a search found, the best first."""

    items: list[ItemBody]


class RunAnswer(_Body):
    """What is served."""

    run: str
    model: str = Field(description="The base model's name, as in the recipe.")
    rankers: list[str] = Field(description="The first is the default.")
    items: int = Field(description="Size of the catalogue.")


class ExampleAnswer(_Body):
    """A row of the data under test."""

    row: int
    rows: int = Field(description="How many there are.")
    history: list[ItemBody]
    candidates: list[ItemBody]
    target: ItemBody = Field(description="What the user took next.")


class UnknownName(_Body):
    """A name that stands for no item, or for several."""

    given: str
    near: list[ItemBody]


class Problem(_Body):
    """Why a request was not answered."""

    code: str = Field(description="For machines, as `unknown_item` or `queue_full`.")
    message: str = Field(description="For people: what was given, what was expected, what to do.")
    items: list[UnknownName] = Field([], description="With `unknown_item`: the names, and near matches.")


class ProblemAnswer(_Body):
    """The body of every answer from 400 on."""

    error: Problem


class StateAnswer(_Body):
    """Whether the server lives, or takes requests."""

    status: str
