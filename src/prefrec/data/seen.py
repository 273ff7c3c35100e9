"""Items that the user of a held-out example saw before its target: training and earlier held-out interactions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.rows import RankingExample
from prefrec.data.splits import Sequences, Targets
from prefrec.data.types import LOG_SCHEMA, PreparedData
from prefrec.errors import DataError


class UnknownUserError(DataError):
    """The log has no user with this id."""


def held_out(sequences: Sequences, targets: Sequence[Targets], learn: NDArray[np.bool_]) -> pl.DataFrame:
    """Return the interactions up to each user's last target, without those to learn from.

    `learn` is a mask of the sequences' interactions. The result has the columns and the order of `sequences.frame`.
    """
    last = np.full(len(sequences.users), -1, dtype=np.int32)
    for rows in targets:
        np.maximum.at(last, rows[:, 0], rows[:, 1])
    before = sequences.positions <= np.repeat(last, sequences.lengths)
    return sequences.frame.filter(pl.Series(before & ~learn))


def seen_items(data: PreparedData, rows: Sequence[RankingExample]) -> list[set[str]]:
    """Return the items that each example's user saw before the target, to be excluded in full ranking.

    With `repeats: keep` nothing is to be excluded, and the sets are empty; `items_before` has what was seen. `rows`
    are B validation or test examples; the result is a set of item ids per example [B].
    """
    return [set() for _ in rows] if data.keeps_repeats else items_before(data, rows)


def items_before(data: PreparedData, rows: Sequence[RankingExample]) -> list[set[str]]:
    """Return the items [B] that the user of each validation or test example saw before the target.

    These are the history, the user's training interactions, and the held-out interactions before the target. The
    target is among them if the user saw it before.
    """
    users = {e.user_id for e in rows}
    learnt, held_out = _by_user(data.train_interactions, users), _by_user(data.held_out_interactions, users)
    keys = {}
    if data.held_out_interactions is not None:
        later = data.held_out_interactions.filter(pl.col("user_id").is_in(list(users)))
        places = later.with_columns(place=pl.int_range(pl.len()).over("user_id")).select(*data.identity, "place")
        keys = {tuple(key): place for *key, place in places.iter_rows()}
    seen = []
    for e, target in zip(rows, data.targets(rows).iter_rows(), strict=True):
        # Training targets, and those of data without held-out interactions, are not in this log.
        before = held_out.get(e.user_id, [])[: keys.get(target, 0)]
        seen.append({*e.history, *learnt.get(e.user_id, ()), *before})
    return seen


def user_histories(data: PreparedData, users: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return all items of each of these users (default: all users), oldest first, held-out interactions included.

    Raise UnknownUserError if a user is not in the log.
    """
    return dict(history_lists(data, users).iter_rows())


def history_lists(data: PreparedData, users: Collection[str] | None = None) -> pl.DataFrame:
    """Return a frame of `user_histories`: the columns `user_id` and `items`, a list."""
    log = pl.concat(log.select(*LOG_SCHEMA) for log in data.logs)
    log = log if users is None else log.filter(pl.col("user_id").is_in(list(users)))
    log = log.sort("user_id", "timestamp", maintain_order=True)
    lists = log.group_by("user_id", maintain_order=True).agg(items="item_id")
    if users is None:
        return lists
    asked = pl.DataFrame({"user_id": list(dict.fromkeys(users))}, schema={"user_id": pl.String})
    lists = asked.join(lists, on="user_id", how="left", maintain_order="left")
    unknown = lists.filter(pl.col("items").is_null())
    if len(unknown):
        raise unknown_user(unknown["user_id"][0])
    return lists


def unknown_user(user: str) -> UnknownUserError:
    """Return the error about a user who is not in the log."""
    return UnknownUserError(f"user {user!r} is not in the run's log")


def _by_user(log: pl.DataFrame | None, users: Collection[str]) -> dict[str, list[str]]:
    """Return these users' items in the order of the log."""
    if log is None:
        return {}
    chosen = log.filter(pl.col("user_id").is_in(list(users)))
    return dict(chosen.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
