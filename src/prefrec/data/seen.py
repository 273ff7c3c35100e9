"""What is known of a user. Every entry point reads it here.

| question | history | what is not answered | what rankers have learnt |
|---|---|---|---|
| a validation example | up to the target | touched before the target | the training interactions |
| a test example | up to the target | touched before the target | training and validation interactions |
| a client's, about a user | the whole log | touched at any time | training and validation interactions |

The log of a user are the interactions that pass the filters (`PreparedData.logs`), with test targets, whether or not
the user has examples. What is touched are all interactions of the source, also those that filters drop
(`PreparedData.touched`). `PreparedData.known_interactions` are what rankers have learnt, or count, of all users.
Limits of measured rows shorten none of these. With `learn_validation: false`, rankers have learnt the training
interactions alone, also before test examples and questions of clients.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import polars as pl

from prefrec.data.rows import RankingExample
from prefrec.data.types import LOG_SCHEMA, PreparedData
from prefrec.errors import DataError


class UnknownUserError(DataError):
    """The log has no user with this id."""


def seen_items(data: PreparedData, rows: Sequence[RankingExample]) -> list[set[str]]:
    """Return the items that each example's user saw before the target, to be excluded in full ranking.

    With `repeats: keep` nothing is to be excluded, and the sets are empty; `items_before` has what was seen. `rows`
    are B validation or test examples; the result is a set of item ids per example [B].
    """
    return [set() for _ in rows] if data.keeps_repeats else items_before(data, rows)


def items_before(data: PreparedData, rows: Sequence[RankingExample]) -> list[set[str]]:
    """Return the items [B] that the user of each validation or test example saw before the target.

    These are the history, the user's training interactions, the held-out interactions before the target, and what
    the user touched besides the log at an earlier time. The target is among them if the user saw it before.
    """
    users = {e.user_id for e in rows}
    learnt, held_out = _by_user(data.train_interactions, users), _by_user(data.held_out_interactions, users)
    touched = _touched_by_user(data, users)
    places: dict[Any, tuple[int, int]] = {}
    if data.held_out_interactions is not None:
        later = data.held_out_interactions.filter(pl.col("user_id").is_in(list(users)))
        place = pl.int_range(pl.len()).over("user_id")
        numbered = later.select(*data.identity, place=place, time="timestamp")
        places = {tuple(key): (number, time) for *key, number, time in numbered.iter_rows()}
    seen = []
    for e, target in zip(rows, data.targets(rows).iter_rows(), strict=True):
        # Training targets, and those of data without held-out interactions, are not in this log.
        number, now = places.get(target, (0, None))
        found = {*e.history, *learnt.get(e.user_id, ()), *held_out.get(e.user_id, [])[:number]}
        if now is not None:
            found.update(item for item, time in touched.get(e.user_id, ()) if time < now)
        seen.append(found)
    return seen


def user_histories(data: PreparedData, users: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return all items of each of these users (default: all users), oldest first, held-out interactions included.

    Raise UnknownUserError if a user is not in the log.
    """
    return dict(user_logs(data, users).select("user_id", "items").iter_rows())


def user_logs(data: PreparedData, users: Collection[str] | None = None) -> pl.DataFrame:
    """Return what a client's question about these users (default: all users) is answered from.

    The frame has the columns `user_id`, `items` (all items of the log, oldest first), `times` (their times, empty
    unless `PreparedData.has_history_times`) and `touched` (items besides the log, which are not answered either).
    Users are in the given order, by default sorted. A user of whom filters have left nothing has no `items`. Raise
    UnknownUserError if a user is not known.
    """
    log = pl.concat(log.select(*LOG_SCHEMA) for log in data.logs)
    beside = log.clear() if data.touched is None else data.touched
    if users is not None:
        log, beside = (frame.filter(pl.col("user_id").is_in(list(users))) for frame in (log, beside))
    log = log.sort("user_id", "timestamp", maintain_order=True)
    times = pl.col("timestamp") if data.has_history_times else pl.col("timestamp").head(0)
    lists = log.group_by("user_id", maintain_order=True).agg(items="item_id", times=times)
    offered = pl.col("item_id").filter(pl.col("item_id").is_in(data.catalogue.ids))
    touched = beside.group_by("user_id", maintain_order=True).agg(touched=offered)
    lists = lists.join(touched, on="user_id", how="full", coalesce=True, maintain_order="left_right")
    empty = pl.col("items", "times", "touched").fill_null([])
    if users is None:
        return lists.with_columns(empty).sort("user_id")
    asked = pl.DataFrame({"user_id": list(dict.fromkeys(users))}, schema={"user_id": pl.String})
    unknown = asked.join(lists, on="user_id", how="anti", maintain_order="left")
    if len(unknown):
        raise unknown_user(unknown["user_id"][0])
    return asked.join(lists, on="user_id", how="left", maintain_order="left").with_columns(empty)


def unknown_user(user: str) -> UnknownUserError:
    """Return the error about a user who is not in the log."""
    return UnknownUserError(f"user {user!r} is not in the run's log")


def _by_user(log: pl.DataFrame | None, users: Collection[str]) -> dict[str, list[str]]:
    """Return these users' items in the order of the log."""
    if log is None:
        return {}
    chosen = log.filter(pl.col("user_id").is_in(list(users)))
    return dict(chosen.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def _touched_by_user(data: PreparedData, users: Collection[str]) -> dict[str, list[tuple[str, int]]]:
    """Return the items that these users touched besides the log, with their times; none without one."""
    if data.touched is None:
        return {}
    chosen = data.touched.filter(pl.col("user_id").is_in(list(users))).drop_nulls("timestamp")
    lists = chosen.group_by("user_id").agg("item_id", "timestamp")
    return {user: list(zip(items, times, strict=True)) for user, items, times in lists.iter_rows()}
