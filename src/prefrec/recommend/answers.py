"""Answers as a list that prints as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeVar

import polars as pl

from prefrec.evaluation.labels import as_table


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranked item; `rank` starts at 1. A language model's score is the log-probability of the title, in nats."""

    rank: int
    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class Effect:
    """An item of a history; `effect`, in nats, is positive if the item raises the explained title's probability."""

    item_id: str
    title: str
    effect: float


ANSWERS = pl.Schema({"user_id": str, "rank": int, "item_id": str, "title": str, "score": float})
"""Columns of the answers of `recommend_all`."""
Row = TypeVar("Row", Ranked, Effect)


class Rows(list[Row]):
    """A list of rows that prints as a table, and as HTML in a notebook."""

    def frame(self) -> pl.DataFrame:
        """Return the rows as a polars frame."""
        return pl.DataFrame([asdict(row) for row in self])

    def __repr__(self) -> str:
        return as_table(self.frame())

    def _repr_html_(self) -> str:
        return as_table(self.frame(), "_repr_html_")
