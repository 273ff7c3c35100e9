"""The names of items in requests, and the rules of a recommendation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic_core import PydanticCustomError

Relation = Literal["also_bought", "similar"]
"""How items are related to an item.

also_bought: customers who had the item had them, too, such as a lamp for a tent. The log decides.
similar: they can take the item's place, such as another tent. Titles and item vectors decide.
"""
MAX_NAME = 512
"""Maximum characters of a title or id."""
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


def _no_text_or_truth(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Count = Annotated[int, Field(ge=1), BeforeValidator(_no_text_or_truth)]
"""A whole number from 1. The text "3" and `true` are none, as the schema of the HTTP interface says; 3.0 is one."""
Factor = Annotated[float, Field(ge=0.01, le=100, strict=True)]
"""A boost: an item at place n comes to place n / factor."""


class Strict(BaseModel):
    """The base of requests and responses: unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid")


class ById(Strict, frozen=True):
    """An item given by its id, for ids that are also titles of other items."""

    item_id: Name


ItemName = Name | ById
"""The name of an item: a title or id, or explicitly an id."""


class Item(Strict, frozen=True):
    """An item of the catalogue."""

    item_id: str
    title: str


class UnknownName(Strict):
    """A name that matches no item, or several."""

    given: str
    near: list[Item]


class ItemRules(Strict):
    """Rules that decide by the catalogue which items may be answered."""

    allow: list[Name] | None = Field(None, description="Recommend only items with these ids. Default: all.")
    deny: list[Name] = Field([], description="Exclude items with these ids.")
    where: Name | None = Field(
        None, description="SQL condition on the catalogue's columns, such as genre = 'Comedy' and year > 1990."
    )
    at_most: Count | None = Field(
        None, description="Maximum number of items with the same value in the column `per`. Default: no limit."
    )
    per: Name | None = Field(None, description="Catalogue column to which `at_most` applies.")
    boost: dict[Name, dict[Name, Factor]] = Field(
        {},
        description="Catalogue column → value → factor. With the factor 2 an item at place 10 comes to place 5, with "
        "0.5 to place 20. The factors of an item multiply.",
    )


class Rules(ItemRules):
    """Rules that decide which items may be recommended."""

    exclude_seen: StrictBool | None = Field(
        None,
        description="Exclude the history and all items that the user has seen. Default: true, but false for data "
        "with `repeats: keep`.",
    )
    new_every: Annotated[int, Field(ge=0), BeforeValidator(_no_text_or_truth)] | None = Field(
        None,
        description="One place in every N goes to an item without interactions in the log, the best of them by the "
        "ranker, or by titles if it does not tell them apart. 0: none. Default: `answers.new_every` of the recipe.",
    )
