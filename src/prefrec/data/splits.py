"""Users' sequences, and their splits into training, validation and test rows in which no row sees its own future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.readers import time_columns
from prefrec.data.types import PARTS, Window
from prefrec.errors import DataError

Rows = NDArray[np.int64]
"""[n, 2]: index of the user, position of the target in the user's sequence."""
# Shares of the training and the validation part; the rest is for test.
_TRAIN, _VALIDATION = 0.8, 0.1
# Share of the users whose held-out interactions are for validation in `by_share`.
_VALIDATION_USERS = 0.2


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
    kept = [c for c in ("rating", "impressions") if c in log.columns]
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


def first_only(log: pl.DataFrame) -> pl.DataFrame:
    """Return each user's first interaction with each item.

    Repeats would put targets into their own histories. Among interactions at the same time the lowest rating stays,
    whatever the order of the file.
    """
    times = time_columns(log)
    values = [c for c in log.columns if c not in (*times, "user_id", "item_id") and not log.schema[c].is_nested()]
    return log.sort([*times, *values], nulls_last=True, maintain_order=True).unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )


def core(log: pl.DataFrame, user_core: int, item_core: int, iterative: bool = True) -> pl.DataFrame:
    """Return the interactions of items with ≥ `item_core` users and of users with ≥ `user_core` items.

    If `iterative`, repeat until nothing changes (the k-core). Otherwise make one pass, items first, as in the
    published LastFM data; some items may then be below the bound again.
    """
    while True:
        before = len(log)
        log = log.filter(pl.len().over("item_id") >= item_core).filter(pl.len().over("user_id") >= user_core)
        if not iterative or len(log) == before:
            return log


def leave_last_out(sequences: Sequences, min_history: int = 3) -> Split:
    """Split off each user's last interaction for test and the one before for validation.

    All earlier windows are training rows. Users with fewer than `min_history` + 2 interactions are dropped. Raise
    DataError if none is left.
    """
    lengths = sequences.lengths
    kept = np.flatnonzero(lengths >= min_history + 2)
    if not len(kept):
        raise DataError(
            f"no user has the {min_history + 2} interactions that leave-last-out needs with "
            f"min_history={min_history} (longest: {lengths.max(initial=0)}); lower --min-history (`min_history` in a "
            "recipe) or take a longer log"
        )
    rows = {
        "train": _spans(kept, min_history, lengths[kept] - 2),
        "validation": np.stack([kept, lengths[kept] - 2], axis=1),
        "test": np.stack([kept, lengths[kept] - 1], axis=1),
    }
    learn = _first_interactions(sequences, kept, lengths[kept] - 2)
    return Split(rows, learn, {"users_too_short": len(lengths) - len(kept)})


def by_time(sequences: Sequences, min_history: int = 3, windows: str = "all") -> Split:
    """Split at two points in time, the 80% and 90% quantiles of all timestamps.

    A row belongs to the period of its target. Histories may reach back over the cuts. An interaction at a cut belongs
    to the later period. `windows` are `all` targets of the validation and test period, or each user's `last` one.
    Raise DataError if a part has no row.
    """
    shares = np.cumsum([_TRAIN, _VALIDATION])
    cuts = np.quantile(sequences.timestamps, shares, method="higher").astype(np.int64)
    period = np.searchsorted(cuts, sequences.timestamps, side="right")
    users = np.repeat(np.arange(len(sequences.users)), sequences.lengths)
    positions = np.arange(len(users)) - sequences.offsets[users]
    rows = {}
    for number, part in enumerate(PARTS):
        chosen = (period == number) & (positions >= min_history)
        rows[part] = _choose(np.stack([users[chosen], positions[chosen]], axis=1), part, windows)
    _refuse_empty(rows, min_history, f"cuts at {cuts.tolist()}")
    seen = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
    facts = {"cuts": cuts.tolist(), "users_too_short": len(sequences.users) - len(seen)}
    return Split(rows, sequences.frame.filter(pl.Series(period == 0)), facts)


def by_user(sequences: Sequences, min_history: int = 3, windows: str = "last") -> Split:
    """Split users by their first interaction: the first 80% train, then 10% validation and 10% test.

    This is the split of the LLaRA and S-DPO papers. Users are split before those with short histories are dropped.
    `windows` are the `last` row of each validation and test user, or `all` of them. Raise DataError if a part has no
    row.
    """
    lengths = sequences.lengths
    ranked = np.argsort(sequences.timestamps[sequences.offsets[:-1]], kind="stable")
    sizes = [int(len(ranked) * share) for share in (_TRAIN, _VALIDATION)]
    groups = {p: np.sort(g) for p, g in zip(PARTS, np.split(ranked, np.cumsum(sizes)), strict=True)}
    rows = {p: _choose(_spans(users, min_history, lengths[users]), p, windows) for p, users in groups.items()}
    _refuse_empty(rows, min_history, f"{len(ranked)} users")
    facts = {
        "users": {part: len(users) for part, users in groups.items()},
        "users_too_short": int((lengths <= min_history).sum()),
    }
    return Split(rows, _first_interactions(sequences, groups["train"], lengths[groups["train"]]), facts)


def by_share(sequences: Sequences, min_history: int = 3, windows: str = "last", seed: int = 0) -> Split:
    """Split each user's interactions: the first 80% (rounded) for training, the rest for validation or test.

    A fifth of the users, drawn by `seed`, are validation users; the others are test users. Users with fewer than
    `min_history` interactions before the cut, or none after it, are dropped. `windows` are each user's `last` row
    after the cut, or `all` of them. Raise DataError if a part has no row.
    """
    lengths = sequences.lengths
    cuts = np.rint(lengths * _TRAIN).astype(np.int64)
    kept = np.flatnonzero((cuts >= min_history) & (cuts < lengths))
    shuffled = np.random.default_rng([seed, 4]).permutation(kept)
    held_out = (np.sort(g) for g in np.split(shuffled, [round(len(kept) * _VALIDATION_USERS)]))
    groups = dict(zip(PARTS[1:], held_out, strict=True))
    rows = {"train": _spans(kept, min_history, cuts[kept])}
    rows |= {p: _choose(_spans(users, cuts[users], lengths[users]), p, windows) for p, users in groups.items()}
    _refuse_empty(rows, min_history, f"{len(lengths)} users")
    facts = {
        "users": {part: len(users) for part, users in groups.items()},
        "users_too_short": len(lengths) - len(kept),
    }
    return Split(rows, _first_interactions(sequences, kept, cuts[kept]), facts)


def materialise(sequences: Sequences, rows: Rows, history_length: int = 10) -> list[Window]:
    """Return the windows of `rows`: at most `history_length` items, oldest first, and the next one."""
    users, items, windows = sequences.users, sequences.items, []
    for user, position in rows.tolist():
        end = int(sequences.offsets[user]) + position
        history = tuple(items[end - min(position, history_length) : end])
        windows.append(Window(users[user], position, history, items[end]))
    return windows


def sample_users(users: Sequence[str], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the indices of at most `limit` rows of randomly drawn whole users, in ascending order.

    Whole users keep a bootstrap over users valid; only the last one may be cut short.
    """
    # Each user gets a random rank; the rows of the users with the lowest ranks are kept.
    _, codes = np.unique(np.asarray(users), return_inverse=True)
    rank = rng.permutation(int(codes.max()) + 1)[codes]
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def _spans(users: NDArray[np.int64], start: NDArray[np.int64] | int, stop: NDArray[np.int64]) -> Rows:
    """Return the rows of all positions start ≤ p < stop of each user."""
    start = np.broadcast_to(start, users.shape)
    counts = np.maximum(stop - start, 0)
    # The running number within each user is the number of the row minus that of the user's first row.
    offsets = np.cumsum(counts) - counts
    positions = np.arange(counts.sum()) + np.repeat(start - offsets, counts)
    return np.stack([np.repeat(users, counts), positions], axis=1)


def _first_interactions(sequences: Sequences, users: NDArray[np.int64], counts: NDArray[np.int64]) -> pl.DataFrame:
    """Return the first `counts` interactions of each of these users."""
    rows = _spans(users, 0, counts)
    mask = np.zeros(len(sequences.items), dtype=bool)
    mask[sequences.offsets[rows[:, 0]] + rows[:, 1]] = True
    return sequences.frame.filter(pl.Series(mask))


def _choose(rows: Rows, part: str, windows: str) -> Rows:
    """Return all training rows, and all rows or the last one of each user in the other parts."""
    if part == "train" or windows == "all" or not len(rows):
        return rows
    return rows[np.append(rows[1:, 0] != rows[:-1, 0], True)]  # a user's rows are adjacent


def _refuse_empty(rows: dict[str, Rows], min_history: int, what: str) -> None:
    empty = [part for part in PARTS if not len(rows[part])]
    if empty:
        raise DataError(
            f"the split leaves no row for {' and '.join(empty)} ({what}, min_history={min_history}): all histories "
            "there are too short. Lower --min-history (`min_history` in a recipe), or split by leave-last-out"
        )
