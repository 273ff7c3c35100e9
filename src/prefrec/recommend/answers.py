"""Answers as a list that prints as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import polars as pl

from prefrec.evaluation.labels import as_table
from prefrec.recommend.explain import Reasons


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranked item; `rank` starts at 1. A language model's score is the log-probability of the title, in nats."""

    rank: int
    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class Effect:
    """An item of a history; `effect` is positive if it raises the explained item's score, in units of the score.

    `parts` are the shares of a blend's parts in the effect.
    """

    item_id: str
    title: str
    effect: float
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


ANSWERS = pl.Schema({"user_id": str, "rank": int, "item_id": str, "title": str, "score": float})
"""Columns of the answers of `recommend_all`."""
RANKED = pl.Schema({name: of for name, of in ANSWERS.items() if name != "user_id"})
"""Columns of one answer."""
Row = TypeVar("Row", Ranked, Effect)


class Rows(list[Row]):
    """A list of rows that prints as a table, and as HTML in a notebook.

    Attributes:
        ranker: of an answer of `recommend`, name of the ranker that was asked.
    """

    ranker: str = ""

    def frame(self) -> pl.DataFrame:
        """Return the rows as a polars frame, which has the same columns without rows."""
        return pl.DataFrame([asdict(row) for row in self], schema=RANKED)

    def __repr__(self) -> str:
        return as_table(self.frame())

    def _repr_html_(self) -> str:
        return as_table(self.frame(), "_repr_html_")


class Related(Rows[Ranked]):
    """The items that are most related to an item, best first; `by` names what ranked them."""

    def __init__(self, rows: Iterable[Ranked], by: str) -> None:
        super().__init__(rows)
        self.by = by

    def __repr__(self) -> str:
        return f"by {self.by}\n{super().__repr__()}"


class Explanation(Rows[Effect]):
    """The effects of the history items that a ranker reads, oldest first; by leave-one-out those of the last 50.

    Args:
        effects: the rows.
        ranker: name of the ranker.
        item: id and title of the explained item.
        reasons: score and method (`prefrec.recommend.explain.Reasons`).
        not_read: number of older items that the ranker does not read.

    Attributes:
        score: score of the item after the whole history.
        method: `contributions` if the effects and `rest` add up to the score, otherwise `leave-one-out`
            (`prefrec.recommend.explain.Method`).
        rest: part of the score that does not depend on the history; None for leave-one-out.
        not_explained: number of older items that count for the score, and whose effects are not measured.
    """

    def __init__(
        self, effects: Iterable[Effect], ranker: str, item: tuple[str, str], reasons: Reasons, not_read: int
    ) -> None:
        super().__init__(effects)
        self.ranker, self.not_read = ranker, not_read
        self.item_id, self.title = item
        self.score, self.method, self.rest = reasons.score, reasons.method, reasons.rest
        self.not_explained = reasons.not_explained

    def frame(self) -> pl.DataFrame:
        """Return the rows as a polars frame, with a column per part of a blend."""
        rows = [{"item_id": e.item_id, "title": e.title, "effect": e.effect, **e.parts} for e in self]
        return pl.DataFrame(rows, schema=None if rows else {"item_id": str, "title": str, "effect": float})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        names = ("ranker", "item_id", "title", "score", "method", "rest", "not_explained", "not_read")
        return {name: getattr(self, name) for name in names} | {"history": [asdict(effect) for effect in self]}

    def __repr__(self) -> str:
        return f"{self._caption()}\n{super().__repr__()}"

    def _caption(self) -> str:
        rest = f" with {self.rest:+.3g} that does not depend on the history" if self.rest else ""
        how = f"the effects{rest} add up to it"
        if self.method == "leave-one-out":
            how = "effect: the score with the item − without it, oldest item first"
        left = f"; the effects of {self.not_explained} older items are not measured" if self.not_explained else ""
        unread = f"; {self.not_read} older items are not read" if self.not_read else ""
        return f"{self.ranker}: {self.title} has the score {self.score:.4g}; {how}{left}{unread}"
