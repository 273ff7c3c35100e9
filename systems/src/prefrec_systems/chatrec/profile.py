"""Profiles of users as lines of a prompt: columns of a table, and a summary of the history's items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Catalogue
from prefrec.errors import DataError

POPULAR_SHARE = 0.1
"""Share of training items that count as popular."""
FAVOURITES = 3


class Profiles:
    """Profiles of users, made from the data.

    Args:
        catalogue: titles. Other columns are summarised over the history: text such as genres (a list, or separated by
            "|"), or numbers such as a year.
        train_interactions: frame `user_id, item_id, …` that determines the popular items. With a column `rating`,
            profiles also show what the user liked best.
        users: a frame with `user_id` and columns to show. Default: none.

    Raises:
        DataError: `users` has no user_id.
    """

    def __init__(
        self, catalogue: Catalogue, train_interactions: pl.DataFrame, users: pl.DataFrame | None = None
    ) -> None:
        if users is not None and "user_id" not in users.columns:
            raise DataError(f"the table of users needs a column user_id, but has {', '.join(users.columns)}")
        about_users = users.rows(named=True) if users is not None else []
        self._users = {str(row.pop("user_id")): row for row in about_users}
        self._items = {str(row["item_id"]): row for row in catalogue.frame.rows(named=True)}
        self._columns = [c for c in catalogue.frame.columns if c not in ("item_id", "title")]
        counts = Counter(train_interactions["item_id"].to_list())
        self._popular = {item for item, _ in counts.most_common(max(1, round(POPULAR_SHARE * len(counts))))}
        self._ratings = _ratings(train_interactions)

    def lines(self, user_id: str | None, history: Sequence[str]) -> list[str]:
        """Return lines about the user: columns of the table, then a summary of the history (item ids)."""
        known = {} if user_id is None else self._users.get(user_id, {})
        lines = [f"{column}: {value}" for column, value in known.items() if value not in (None, "")]
        rows = [self._items[item] for item in history if item in self._items]
        for column in self._columns:
            lines += _summary(column, [row[column] for row in rows])
        given = {} if user_id is None else self._ratings.get(user_id, {})
        if rated := [(given[i], self._items[i]["title"]) for i in history if i in given and i in self._items]:
            best = max(rating for rating, _ in rated)
            lines.append(f"average rating of the last {len(rated)} rated: {np.mean([r for r, _ in rated]):.3g}")
            best_titles = [title for rating, title in rated if rating == best]
            lines.append(f"rated {best:g}, the highest of them: {', '.join(best_titles)}")
        if history:
            popular = sum(item in self._popular for item in history)
            lines.append(f"{popular} of the last {len(history)} taken are among the most popular {POPULAR_SHARE:.0%}")
        return lines


def _ratings(train_interactions: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return user → item → rating; {} without ratings."""
    if "rating" not in train_interactions.columns:
        return {}
    ratings: dict[str, dict[str, float]] = {}
    for user, item, rating in train_interactions.select("user_id", "item_id", "rating").drop_nulls().iter_rows():
        ratings.setdefault(str(user), {})[item] = float(rating)
    return ratings


def _summary(column: str, values: Iterable[Any]) -> list[str]:
    """Return a line about a column of the history's items; [] if it has no values."""
    given = [v for v in values if v is not None and v != ""]
    if not given:
        return []
    if all(isinstance(v, int | float) for v in given):
        return [f"average {column}: {np.mean(given):.4g}"]
    parts = [p for v in given for p in (v if isinstance(v, list) else str(v).split("|"))]
    counts = Counter(str(p).strip() for p in parts if p is not None and str(p).strip())
    favourites = ", ".join(f"{value} ({count} of {len(given)})" for value, count in counts.most_common(FAVOURITES))
    return [f"favourite {column}: {favourites}"]
