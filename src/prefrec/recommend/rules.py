"""How callers name items, and the rules of a recommendation."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_NAME = 512
"""Characters of a title or id."""
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class Strict(BaseModel):
    """The base of what callers give and get: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class ById(Strict):
    """An item by its id, for an id that is also another item's title."""

    item_id: Name


ItemName = Name | ById
"""The name of an item: a title or an id, or explicitly an id."""


class Item(Strict, frozen=True):
    """An item of the catalogue."""

    item_id: str
    title: str


class UnknownName(Strict):
    """A name of no item, or of several."""

    given: str
    near: list[Item]


class Rules(Strict):
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
