"""Splits of users' sequences into training, validation and test rows in which no row sees its own future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.readers import time_columns
from prefrec.data.types import Window
from prefrec.errors import DataError

Rows = NDArray[np.int64]
"""[n, 2]: index of the user, position of the target in the user's sequence."""
PARTS = ("train", "validation", "test")
FRACTIONS = (0.8, 0.1, 0.1)
VALIDATION_USERS = 0.2
"""Share of the users whose held-out interactions are for validation in `by_share`."""
KEPT_COLUMNS = ("rating", "impressions")
"""Optional columns of a log that a split keeps."""


@dataclass(frozen=True)
class Sequences:
    """All users' interactions, oldest first, as flat arrays.

    `items[offsets[u]:offsets[u + 1]]` is the sequence of user `u`; `frame` has the same rows in this order.
    """

    users: list[str]
    offsets: NDArray[np.int64]
    items: list[str]
    timestamps: NDArray[np.int64]
    frame: pl.DataFrame

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user [U]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Split:
    """The rows of each part, the interactions to learn from, and counts of what was left out."""

    rows: dict[str, Rows]
    train_interactions: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def order(log: pl.DataFrame, seed: int) -> Sequences:
    """Sort the log by user and time, with equal times in a random order that `seed` fixes.

    Item ids and the order of lines do not decide ties, because both reveal the target in some published data.
    """
    kept = [c for c in KEPT_COLUMNS if c in log.columns]
    times = time_columns(log)
    log = log.select("user_id", "item_id", *times, *kept).sort("user_id", "item_id", *times)
    # Sorting by ids first makes the draws independent of the order of lines in the file.
    ties = np.random.default_rng([seed, 1]).random(len(log))
    log = log.with_columns(pl.Series("tie", ties)).sort("user_id", *times, "tie").drop("tie", *times[1:])
    lengths = log.group_by("user_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(lengths["len"].to_numpy())]).astype(np.int64)
    return Sequences(
        lengths["user_id"].to_list(), offsets, log["item_id"].to_list(), log["timestamp"].to_numpy(), log
    )


def leave_last_out(sequences: Sequences, min_history: int = 3) -> Split:
    """Split off each user's last interaction for test and the one before for validation.

    All earlier windows are training rows. Users with fewer than `min_history` + 2 interactions are dropped.
    `train_interactions` are each user's interactions without the last two.

    Raises:
        DataError: no user is long enough.
    """
    lengths = sequences.lengths
    kept = np.flatnonzero(lengths >= min_history + 2)
    if not len(kept):
        longest = int(lengths.max(initial=0))
        raise DataError(
            f"no user has the {min_history + 2} interactions that leave-last-out needs with "
            f"min_history={min_history} (longest: {longest}); lower --min-history (`min_history` in a "
            "recipe) or take a longer log"
        )
    rows = {
        "train": _spans(kept, np.full(len(kept), min_history), lengths[kept] - 2),
        "validation": np.stack([kept, lengths[kept] - 2], axis=1),
        "test": np.stack([kept, lengths[kept] - 1], axis=1),
    }
    learn = _mask(sequences, _spans(kept, np.zeros(len(kept), np.int64), lengths[kept] - 2))
    return Split(rows, sequences.frame.filter(learn), {"users_too_short": int(len(lengths) - len(kept))})


def by_time(
    sequences: Sequences,
    min_history: int = 3,
    fractions: Sequence[float] = FRACTIONS,
    windows: str = "all",
) -> Split:
    """Split at two points in time; a row belongs to the period of its target.

    Histories may reach back over the cuts. The cuts are the quantiles of all timestamps at `fractions`; an
    interaction at a cut belongs to the later period.

    Args:
        windows: `all` targets of the validation and test period, or each user's `last` one.

    Raises:
        DataError: a part has no row.
    """
    bounds = np.quantile(sequences.timestamps, np.cumsum(fractions)[:2], method="higher").astype(np.int64)
    period = np.searchsorted(bounds, sequences.timestamps, side="right")
    users = np.repeat(np.arange(len(sequences.users)), sequences.lengths)
    positions = np.arange(len(users)) - sequences.offsets[users]
    rows = {}
    for number, part in enumerate(PARTS):
        chosen = (period == number) & (positions >= min_history)
        rows[part] = np.stack([users[chosen], positions[chosen]], axis=1)
        if part != "train" and windows == "last":
            rows[part] = _last_of_each(rows[part])
    _refuse_empty(rows, min_history, f"cuts at {bounds.tolist()}")
    seen = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
    facts = {"cuts": bounds.tolist(), "users_too_short": int(len(sequences.users) - len(seen))}
    return Split(rows, sequences.frame.filter(pl.Series(period == 0)), facts)


def by_user(
    sequences: Sequences,
    min_history: int = 3,
    fractions: Sequence[float] = FRACTIONS,
    windows: str = "last",
) -> Split:
    """Split users by their first interaction: the first 80% train, then 10% validation and 10% test.

    This is the split of the LLaRA and S-DPO papers. Users are split before those with short histories are dropped.

    Args:
        windows: the `last` row of each validation and test user, or `all` of them. Training users give all rows.

    Raises:
        DataError: a part has no row.
    """
    first = sequences.timestamps[sequences.offsets[:-1]]
    ranked = np.lexsort((np.arange(len(first)), first))
    cuts = [
        int(len(ranked) * fractions[0]),
        int(len(ranked) * fractions[0]) + int(len(ranked) * fractions[1]),
    ]
    groups = dict(zip(PARTS, np.split(ranked, cuts), strict=True))
    rows = {}
    for part, members in groups.items():
        members = np.sort(members)
        lengths = sequences.lengths[members]
        rows[part] = _spans(members, np.full(len(members), min_history), lengths)
        if part != "train" and windows == "last":
            rows[part] = _last_of_each(rows[part])
    _refuse_empty(rows, min_history, f"{len(ranked)} users")
    learn = _mask(sequences, _spans(groups["train"], np.zeros(cuts[0], np.int64), sequences.lengths[groups["train"]]))
    facts = {
        "users": {part: len(members) for part, members in groups.items()},
        "users_too_short": int((sequences.lengths <= min_history).sum()),
    }
    return Split(rows, sequences.frame.filter(learn), facts)


def by_share(
    sequences: Sequences, min_history: int = 3, share: float = FRACTIONS[0], windows: str = "last", seed: int = 0
) -> Split:
    """Split each user's interactions: the first 80% for training, the rest for validation or test.

    A fifth of the users, drawn by `seed`, are validation users; the others are test users. Users with fewer than
    `min_history` interactions before the cut, or none after it, are dropped.

    Args:
        share: training share of each user's interactions, rounded to whole ones.
        windows: each user's `last` row after the cut, or `all` of them.

    Raises:
        DataError: a part has no row.
    """
    lengths = sequences.lengths
    cuts = np.rint(lengths * share).astype(np.int64)
    kept = np.flatnonzero((cuts >= min_history) & (cuts < lengths))
    shuffled = np.random.default_rng([seed, 4]).permutation(kept)
    validation, test = (np.sort(g) for g in np.split(shuffled, [round(len(kept) * VALIDATION_USERS)]))
    rows = {"train": _spans(kept, np.full(len(kept), min_history), cuts[kept])}
    for part, members in (("validation", validation), ("test", test)):
        held_out = _spans(members, cuts[members], lengths[members])
        rows[part] = _last_of_each(held_out) if windows == "last" else held_out
    _refuse_empty(rows, min_history, f"{len(lengths)} users")
    learn = _mask(sequences, _spans(kept, np.zeros(len(kept), np.int64), cuts[kept]))
    facts = {
        "users": {"validation": len(validation), "test": len(test)},
        "users_too_short": int(len(lengths) - len(kept)),
    }
    return Split(rows, sequences.frame.filter(learn), facts)


def materialise(sequences: Sequences, rows: Rows, history_length: int = 10) -> list[Window]:
    """Return the windows of `rows`: at most `history_length` items, oldest first, and the next one."""
    windows = []
    for user, position in rows.tolist():
        end = int(sequences.offsets[user]) + position
        start = end - min(position, history_length)
        windows.append(
            Window(sequences.users[user], position, tuple(sequences.items[start:end]), sequences.items[end])
        )
    return windows


def sample_rows(n: int, limit: int | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices of at most `limit` of `n` rows, drawn at random, in ascending order."""
    if limit is None or n <= limit:
        return np.arange(n)
    return np.sort(rng.choice(n, size=limit, replace=False))


def sample_users(users: Sequence[str], limit: int | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices of at most `limit` rows of randomly drawn whole users, in ascending order.

    Whole users keep a bootstrap over users valid; only the last one may be cut short.
    """
    if limit is None or len(users) <= limit:
        return np.arange(len(users))
    # Each user gets a random rank; the rows of the users with the lowest ranks are kept.
    _, codes = np.unique(np.asarray(users), return_inverse=True)
    rank = rng.permutation(int(codes.max()) + 1)[codes]
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def _spans(users: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]) -> Rows:
    """Return the rows of all positions start ≤ p < stop of each user."""
    counts = np.maximum(stop - start, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])[:-1]
    positions = np.arange(counts.sum()) - np.repeat(offsets, counts) + np.repeat(start, counts)
    return np.stack([np.repeat(users, counts), positions], axis=1)


def _mask(sequences: Sequences, rows: Rows) -> pl.Series:
    mask = np.zeros(len(sequences.items), dtype=bool)
    mask[sequences.offsets[rows[:, 0]] + rows[:, 1]] = True
    return pl.Series(mask)


def _last_of_each(rows: Rows) -> Rows:
    """Return the last row of each user. A user's rows must be adjacent."""
    return rows[np.append(rows[1:, 0] != rows[:-1, 0], True)] if len(rows) else rows


def _refuse_empty(rows: dict[str, Rows], min_history: int, what: str) -> None:
    empty = [part for part in PARTS if not len(rows[part])]
    if empty:
        raise DataError(
            f"the split leaves no row for {' and '.join(empty)} ({what}, min_history={min_history}): all histories "
            "there are too short. Lower --min-history (`min_history` in a recipe), or split by leave-last-out"
        )
