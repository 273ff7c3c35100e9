"""Bodies of requests and responses, with their limits."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from prefrec.recommend.explain import Method
from prefrec.recommend.rules import Count, Item, ItemName, ItemRules, Name, Rules, Strict, UnknownName

MAX_BODY = 1 << 18
"""Most bytes of a request's body."""
MAX_ERRORS = 1000
"""A body with more errors than this is refused with one message."""
MAX_HISTORY = 200
MAX_EXPLAINED_PAIRS = 1000
"""Most history items × candidates whose effects a language model measures: the number of titles to score."""
MAX_CANDIDATES = MAX_TOP = 100
MAX_FOUND = 50
MAX_USERS = 100
"""Most users of a request."""
Unmatched = Annotated[
    list[str],
    Field(
        description="What `allow`, `deny` and `boost` name and no item has, such as `deny: i999` or "
        "`boost: brand=Acme`."
    ),
]
ShowHistory = Annotated[
    bool, Field(description="Answer with the history, too, as items. With `user_id`, it begins with the user's log.")
]
Candidates = Annotated[list[ItemName], Field(max_length=MAX_CANDIDATES)]


class _Body(Strict):
    """The base of all requests."""

    @model_validator(mode="wrap")
    @classmethod
    def _tell_few_errors(cls, sent: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise one error in place of more than `MAX_ERRORS`.

        FastAPI makes objects of each error, and answers no other request meanwhile: for 80,000 it takes a second.
        """
        try:
            return validate(sent)
        except ValidationError as e:
            if e.error_count() <= MAX_ERRORS:
                raise
            message = "{count} values or fields are wrong; /openapi.json describes the request"
            raise PydanticCustomError("many_errors", message, {"count": e.error_count()}) from None


class _Request(_Body):
    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run). Default: the first one served.")
    history: list[ItemName] = Field(max_length=MAX_HISTORY, description="Titles or item ids, oldest first.")


class RankRequest(_Request):
    """Rank `candidates` by how likely they come next after `history`."""

    candidates: Candidates = Field(min_length=1, description="Titles or item ids to rank, each item once.")
    show_history: ShowHistory = False


class AfterUser(_Request):
    """A request about what comes next after the items of a user, and those of `history`."""

    history: list[ItemName] = Field(
        [],
        max_length=MAX_HISTORY,
        description="Titles or item ids, oldest first. With `user_id`, they come after the user's items in the log.",
    )
    user_id: Name | None = Field(None, description="User whose items in the run's log come before `history`.")


class ExplainRequest(AfterUser):
    """Explain what each item of the history adds to the score of `item`."""

    candidates: Candidates = Field(
        [],
        description="Items among which it is scored. If empty, all are, and prompts show no candidates, as for "
        "/v1/recommend.",
    )
    item: ItemName = Field(description="Item to explain: one of the candidates, or any item if there are none.")


class RecommendRequest(AfterUser, Rules):
    """Recommend the items of the catalogue that are most likely to come next after `history`."""

    k: Count = Field(10, le=MAX_TOP, description="Number of items to recommend.")
    show_history: ShowHistory = False


class RecommendUsersRequest(Rules, _Body):
    """Recommend to several users of the log, under the same rules."""

    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run). Default: the first one served.")
    user_ids: list[Name] = Field(min_length=1, max_length=MAX_USERS, description="Users of the run's log.")
    k: Count = Field(10, le=MAX_TOP, description="Number of items to recommend to each.")
    show_history: ShowHistory = False


class RelatedRequest(ItemRules, _Body):
    """Find the items of the catalogue that are most related to `item`."""

    ranker: Name | None = Field(None, description="Name of a ranker (see /v1/run). Default: the first one served.")
    item: ItemName = Field(description="Title or item id.")
    k: Count = Field(10, le=MAX_TOP, description="Number of items.")


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
    """The candidates, best first."""

    ranker: str
    history: list[Item] | None = Field(
        None, description="The history, with names resolved to items; null without `show_history`."
    )
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    ranking: list[RankedItem]


class RecommendAnswer(RankAnswer):
    """The best items of the catalogue that the rules allow.

    An empty history is answered by recent popularity, which is then named as the ranker; scores are numbers of
    interactions.
    """

    exact: bool = Field(description="True if no other item of the catalogue scores higher.")
    unmatched: Unmatched


class RecommendUsersAnswer(Strict):
    """An answer for each user, in the order of the request."""

    answers: list[RecommendAnswer]


class RelatedItem(Item):
    """A line of a list of related items."""

    rank: int = Field(description="Rank, from 1.")
    score: float = Field(description="Score of `by`, above 0.")


class RelatedAnswer(Strict):
    """The most related items that the rules allow, best first; fewer than `k` if fewer are related at all."""

    by: str = Field(
        description="What ranked them: the ranker, or for rankers without a notion of the relation item-kNN "
        "(/v1/also-bought) and title TF-IDF (/v1/similar)."
    )
    item: Item
    items: list[RelatedItem]
    unmatched: Unmatched


class Influence(Item):
    """The effect of one history item on the score of the explained item."""

    position: int = Field(description="Position in the history, from 0.")
    effect: float = Field(description="Positive if the item raises the score, in units of the score.")
    parts: dict[str, float] = Field(description="For a blend, part → its share in the effect.")
    share_change: float | None = Field(description="`share`, minus the share without this item.")


class ExplainAnswer(Strict):
    """The item's score with the whole history, and the effect of each history item."""

    ranker: str
    item: Item
    score: float = Field(
        description="Score of the ranker; for a language model the log-probability of the title, end token included."
    )
    method: Method = Field(
        description="contributions: the effects and `rest` add up to the score. leave-one-out: an effect is the "
        "score, minus the score without the item."
    )
    rest: float | None = Field(description="Part of the score that does not depend on the history, if it is a sum.")
    share: float | None = Field(
        description="A language model's share of the item among the candidates, if there are any."
    )
    history: list[Item] = Field(description="The history, with names resolved to items.")
    history_shortened: bool = Field(description="True if the oldest items did not fit into the prompt.")
    not_explained: int = Field(
        description="Number of older history items that count for the score, and whose effects are not measured. "
        "Leave-one-out measures those of the last 50 items, or fewer with more than 20 candidates."
    )
    influences: list[Influence] = Field(
        description="Effect of each history item that is read and explained, in the order of the history."
    )


class ItemsAnswer(Strict):
    """Items that match a search, best first."""

    items: list[Item]


class UsersAnswer(Strict):
    """Users of the log whose ids begin with the query."""

    users: list[str]


class RunAnswer(Strict):
    """The served run."""

    run: str
    model: str = Field(description="Name of the base model, as in the recipe; empty if no language model is served.")
    rankers: list[str] = Field(description="Names of the rankers. The first is the default.")
    for_new: str = Field(
        description="Default of /v1/recommend with `exclude_seen: true`: the best for items that are new to the user."
    )
    models: list[str] = Field(description="Names of the language models.")
    items: int = Field(description="Number of items in the catalogue.")


class ExampleAnswer(Strict):
    """An example of the split under test."""

    row: int
    rows: int = Field(description="Number of test examples.")
    history: list[Item]
    candidates: list[Item]
    target: Item = Field(description="Item that the user chose next.")


class Problem(Strict):
    """An error."""

    code: str = Field(description="Machine-readable code, such as `unknown_item` or `queue_full`.")
    message: str = Field(description="What is wrong, where, and what to do.")
    items: list[UnknownName] = Field([], description="For `unknown_item`: the unknown names, with near matches.")


class ProblemAnswer(Strict):
    """The body of every error response (status 400 or higher)."""

    error: Problem
