"""Sort a log into user sequences and split them into training, validation and test, without leaks from the future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.times import time_columns
from prefrec.data.types import IS_TARGET, SPLITS, WEIGHT
from prefrec.errors import DataError

Targets = NDArray[np.int32]
"""Examples [n, 2]: index of the user, and position of the target in the user's sequence."""
# Fractions for training and validation; the rest is for test.
_TRAIN, _VALIDATION = 0.8, 0.1
# Fraction of users whose held-out interactions are for validation in `by_share`.
_VALIDATION_USERS = 0.2
# Interactions to sort at a time, but at least a sixteenth of the log: sorting takes five times their memory.
_BLOCK = 500_000


@dataclass(frozen=True, eq=False)
class Sequences:
    """All users' interactions, oldest first, as flat arrays.

    `items[offsets[u]:offsets[u + 1]]` is the sequence of user `u`; `frame` has the same rows in this order.
    `is_target` says which interactions are of a kind that targets may have. Default: all are.
    """

    users: pl.Series
    offsets: NDArray[np.int64]
    frame: pl.DataFrame
    is_target: NDArray[np.bool_] | None = None

    @property
    def items(self) -> pl.Series:
        """Items of all sequences."""
        return self.frame["item_id"]

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """Times of all interactions, in seconds since 1970."""
        return self.frame["timestamp"].to_numpy()

    @property
    def positions(self) -> NDArray[np.int32]:
        """Position of each interaction in its user's sequence, from 0."""
        positions = np.arange(len(self.frame), dtype=np.int32)
        positions -= np.repeat(self.offsets[:-1].astype(np.int32), self.lengths)
        return positions

    @property
    def tied(self) -> NDArray[np.bool_]:
        """Whether each interaction has the same time as another interaction of its user."""
        same = np.diff(self.timestamps) == 0
        same[self.offsets[1:-1] - 1] = False
        return np.append(same, False) | np.append(False, same)

    @property
    def moments(self) -> NDArray[np.int64]:
        """For each interaction the index of the first one of its user at the same time."""
        starts = np.append(True, np.diff(self.timestamps) != 0)
        starts[self.offsets[:-1]] = True
        return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of interactions of each user [U]."""
        return np.diff(self.offsets)

    def asked(self, rows: Targets) -> Targets:
        """Return the examples whose targets are of a kind that targets may have."""
        if self.is_target is None:
            return rows
        return rows[self.is_target[self.offsets[rows[:, 0]] + rows[:, 1]]]


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of each part, the interactions to learn from, and facts about the split.

    Attributes:
        rows: part → its examples.
        learn: mask of the sequences' interactions: those to learn from.
        interactions: the sequences' interactions, or only those to learn from.
        facts: counts for the protocol, such as of dropped users.
    """

    rows: dict[str, Targets]
    learn: NDArray[np.bool_]
    interactions: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)

    def take_interactions(self) -> pl.DataFrame:
        """Return the interactions to learn from. This may remove the columns of `interactions`.

        Columns are filtered and removed one at a time, because polars returns freed memory late.
        """
        if len(self.interactions) != len(self.learn):
            return self.interactions
        learn, columns = pl.Series(self.learn), self.interactions.columns
        return pl.DataFrame([self.interactions.drop_in_place(column).filter(learn) for column in columns])


def order(log: pl.DataFrame, seed: int, latest: int | None = None) -> Sequences:
    """Sort the log by user and time, with ties in random order.

    Item ids and the order of lines do not decide ties, because both reveal the target in some published data. Only
    each user's `latest` interactions are kept, by default all.
    """
    kept = [c for c in ("rating", "impressions", WEIGHT, IS_TARGET) if c in log.columns]
    times, rng = time_columns(log), np.random.default_rng([seed, 1])

    def ordered(log: pl.DataFrame) -> pl.DataFrame:
        log = log.select("user_id", "item_id", *times, *kept).sort("user_id", "item_id", *times)
        # Sorting by ids first makes the random numbers independent of the order of lines in the file.
        ties = pl.Series("tie", rng.random(len(log)))
        log = log.with_columns(ties).sort("user_id", *times, "tie").drop("tie", *times[1:])
        return log if latest is None else log.filter(pl.int_range(pl.len(), 0, -1).over("user_id") <= latest)

    log = _by_blocks(log, ordered)
    runs = log["user_id"].rle().struct
    offsets = np.concatenate([[0], np.cumsum(runs.field("len").to_numpy(), dtype=np.int64)])
    users, is_target = runs.field("value").cast(pl.String), None
    if IS_TARGET in log.columns:
        log, is_target = log.drop(IS_TARGET), log[IS_TARGET].to_numpy()
    return Sequences(users, offsets, log, is_target)


def _by_blocks(log: pl.DataFrame, change: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Return the log after `change`, which sorts by user; if ids are an `Enum`, one block of users at a time."""
    kind, blocks = log.schema["user_id"], min(16, len(log) // _BLOCK)
    if not isinstance(kind, pl.Enum) or blocks < 2:
        return change(log)
    users = log["user_id"].to_physical()
    edges = np.linspace(0, len(kind.categories), blocks + 1).astype(int).tolist()
    return pl.concat([change(log.filter(users.is_between(a, b, closed="left"))) for a, b in pairwise(edges)])


def first_only(log: pl.DataFrame, keep_repeats: bool = False) -> pl.DataFrame:
    """Return each user's first interaction with each item, or with `keep_repeats` the first of each second.

    Of interactions of several kinds, the first of those that may be targets is kept, or else the first of the largest
    weight: a purchase stands for the views before it. Of several interactions at the same time, the one with the
    lowest rating is kept, so the order of the file does not matter.
    """
    times = time_columns(log)
    pair = ["user_id", "item_id"]
    same = [*pair, "timestamp"] if keep_repeats else pair
    kinds = [c for c in (IS_TARGET, WEIGHT) if c in log.columns]
    nested = [c for c, kind in log.schema.items() if kind.is_nested()]
    values = [c for c in log.columns if c not in (*pair, *times, *nested, *kinds)]
    by = [*same, *kinds, *(c for c in times if c not in same), *values]
    empty_last = [column in values for column in by]  # a plain True would not be faster
    largest_first = [column in kinds for column in by]
    is_first = pl.any_horizontal(pl.col(c).ne_missing(pl.col(c).shift()) for c in same)

    # Rows that are equal in all of these columns can differ only in nested ones. A stable sort costs seven times as
    # much, so it is used only if there are nested columns.
    def first_rows(block: pl.DataFrame) -> pl.DataFrame:
        ordered = block.sort(by, descending=largest_first, nulls_last=empty_last, maintain_order=bool(nested))
        return ordered.filter(is_first)

    return _by_blocks(log, first_rows)


def core(log: pl.DataFrame, user_core: int, item_core: int, iterative: bool = True) -> pl.DataFrame:
    """Return the interactions of items with at least `item_core` users and of users with at least `user_core` items.

    If `iterative`, filter until nothing changes (the k-core). Otherwise filter once, items first, as in the published
    LastFM data; some items may then fall below the bound again.
    """
    while max(user_core, item_core) > 1:
        before = len(log)
        log = log.filter(pl.len().over("item_id") >= item_core).filter(pl.len().over("user_id") >= user_core)
        if not iterative or len(log) == before:
            break
    return log


def leave_last_out(sequences: Sequences, min_history: int = 3) -> Split:
    """Hold out each user's last interaction for test and the one before it for validation.

    All earlier interactions are targets of training examples. Users with fewer than `min_history` + 2 interactions
    are dropped. If only some kinds may be targets, the last two of these kinds with enough history are held out, with
    all that follows the first of them; users with fewer have training examples only. Raise DataError if no user is
    left.
    """
    lengths = sequences.lengths
    kept = np.flatnonzero(lengths >= min_history + 2)
    if not len(kept):
        raise DataError(
            f"no user has the {min_history + 2} interactions that leave-last-out needs with "
            f"min_history={min_history} (longest: {lengths.max(initial=0)}); lower --min-history (`min_history` in a "
            "recipe) or use a longer log"
        )
    if sequences.is_target is not None:
        return _last_targets(sequences, kept, min_history)
    rows = {
        "train": _spans(kept, min_history, lengths[kept] - 2),
        "validation": np.stack([kept, lengths[kept] - 2], axis=1),
        "test": np.stack([kept, lengths[kept] - 1], axis=1),
    }
    learn = _first_interactions(sequences, kept, lengths[kept] - 2)
    return Split(rows, learn, sequences.frame, {"users_too_short": len(lengths) - len(kept)})


def _last_targets(sequences: Sequences, kept: NDArray[np.int64], min_history: int) -> Split:
    """Hold out the last two interactions of these users that may be targets, as `leave_last_out` does."""
    lengths = sequences.lengths
    asked = sequences.asked(_spans(kept, min_history, lengths[kept]))
    users, first, counts = np.unique(asked[:, 0], return_index=True, return_counts=True)
    last = (first + counts - 1)[counts >= 2]
    if not len(last):
        raise DataError(
            "no user has two interactions of the kinds in `targets` that leave-last-out needs, each after "
            f"{min_history} others (`min_history`): name more kinds in `targets`, or choose --split time or user "
            "(`split` in a recipe)"
        )
    cuts = lengths.copy()
    cuts[users[counts >= 2]] = asked[last - 1, 1]
    rows = {
        "train": asked[asked[:, 1] < cuts[asked[:, 0]]],
        "validation": asked[last - 1],
        "test": asked[last],
    }
    facts = {"users_too_short": len(lengths) - len(kept), "users_with_few_targets": len(kept) - len(last)}
    return Split(rows, _first_interactions(sequences, kept, cuts[kept]), sequences.frame, facts)


def by_time(sequences: Sequences, min_history: int = 3, windows: str = "all") -> Split:
    """Split all users at two points in time, the 80% and 90% quantiles of all timestamps.

    An example belongs to the period of its target; its history may begin before the cut. An interaction exactly at a
    cut belongs to the later period. With `windows` = `last`, only each user's last target of the period of validation
    or test is used. Raise DataError if a part has no example.
    """
    cuts = np.quantile(sequences.timestamps, [_TRAIN, _TRAIN + _VALIDATION], method="higher").astype(np.int64)
    period = np.searchsorted(cuts, sequences.timestamps, side="right")
    users = np.repeat(np.arange(len(sequences.users), dtype=np.int32), sequences.lengths)
    positions = sequences.positions
    rows = {}
    for number, part in enumerate(SPLITS):
        chosen = (period == number) & (positions >= min_history)
        rows[part] = _choose(sequences.asked(np.stack([users[chosen], positions[chosen]], axis=1)), part, windows)
    _refuse_empty(rows, min_history, f"cuts at {cuts.tolist()}")
    seen = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
    facts = {"cuts": cuts.tolist(), "users_too_short": len(sequences.users) - len(seen)}
    return Split(rows, period == 0, sequences.frame, facts)


def before_tests(log: pl.DataFrame, fold: int) -> pl.DataFrame:
    """Return the interactions before the last `fold` test periods of `by_time`."""
    for _ in range(fold):
        if log.is_empty():
            break
        cut = np.quantile(log["timestamp"].to_numpy(), _TRAIN + _VALIDATION, method="higher")
        log = log.filter(pl.col("timestamp") < int(cut))
    return log


def by_user(sequences: Sequences, min_history: int = 3, windows: str = "last") -> Split:
    """Split users by their first interaction: the first 80% train, then 10% validation and 10% test.

    This is the split of the LLaRA and S-DPO papers. Users are split before those with short histories are dropped.
    With `windows` = `last`, only each user's last example is used for validation and test. Raise DataError if a part
    has no example.
    """
    lengths = sequences.lengths
    ranked = np.argsort(sequences.timestamps[sequences.offsets[:-1]], stable=True)
    sizes = [int(len(ranked) * share) for share in (_TRAIN, _VALIDATION)]
    groups = {SPLITS[i]: np.sort(group) for i, group in enumerate(np.split(ranked, np.cumsum(sizes)))}
    rows = {p: sequences.asked(_spans(users, min_history, lengths[users])) for p, users in groups.items()}
    rows = {p: _choose(of_part, p, windows) for p, of_part in rows.items()}
    _refuse_empty(rows, min_history, f"{len(ranked)} users")
    facts = {"users": {p: len(g) for p, g in groups.items()}, "users_too_short": int((lengths <= min_history).sum())}
    learn = _first_interactions(sequences, groups["train"], lengths[groups["train"]])
    return Split(rows, learn, sequences.frame, facts)


def by_share(sequences: Sequences, min_history: int = 3, windows: str = "last", seed: int = 0) -> Split:
    """Split each user's interactions: the first 80% (rounded) for training, the rest for validation or test.

    A random fifth of the users are validation users; the others are test users. Users with fewer than `min_history`
    interactions before the cut, or none after it, are dropped. With `windows` = `last`, only each user's last example
    is used for validation and test. Raise DataError if a part has no example.
    """
    lengths = sequences.lengths
    cuts = np.rint(lengths * _TRAIN).astype(np.int64)
    kept = np.flatnonzero((cuts >= min_history) & (cuts < lengths))
    shuffled = np.random.default_rng([seed, 4]).permutation(kept)
    validation, test = np.split(shuffled, [round(len(kept) * _VALIDATION_USERS)])
    groups = {"validation": np.sort(validation), "test": np.sort(test)}
    rows = {"train": sequences.asked(_spans(kept, min_history, cuts[kept]))}
    for part, users in groups.items():
        rows[part] = _choose(sequences.asked(_spans(users, cuts[users], lengths[users])), part, windows)
    _refuse_empty(rows, min_history, f"{len(lengths)} users")
    facts = {"users": {p: len(g) for p, g in groups.items()}, "users_too_short": len(lengths) - len(kept)}
    return Split(rows, _first_interactions(sequences, kept, cuts[kept]), sequences.frame, facts)


def sample_users(
    users: Sequence[str] | NDArray[np.integer[Any]], limit: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the indices of at most `limit` examples of whole random users, in ascending order.

    Whole users keep a bootstrap over users valid; only the last user may be cut short.
    """
    # Each user gets a random rank; the examples of the users with the lowest ranks are kept.
    _, codes = np.unique(np.asarray(users), return_inverse=True)
    rank = rng.permutation(int(codes.max()) + 1)[codes]
    return np.sort(np.argsort(rank, stable=True)[:limit])


def _spans(users: NDArray[np.int64], start: NDArray[np.int64] | int, stop: NDArray[np.int64]) -> Targets:
    """Return an example for each position start ≤ p < stop of each user."""
    start = np.broadcast_to(start, users.shape)
    counts = np.maximum(stop - start, 0)
    rows = np.empty((counts.sum(), 2), dtype=np.int32)
    rows[:, 0] = np.repeat(users.astype(np.int32), counts)
    # The position within a user is the row number minus that of the user's first row, plus `start`.
    rows[:, 1] = np.arange(len(rows), dtype=np.int32)
    rows[:, 1] -= np.repeat((np.cumsum(counts) - counts - start).astype(np.int32), counts)
    return rows


def _first_interactions(
    sequences: Sequences, users: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return a mask of the first `counts` interactions of each of these users."""
    first = np.zeros(len(sequences.users), dtype=np.int32)
    first[users] = counts
    return sequences.positions < np.repeat(first, sequences.lengths)


def _choose(rows: Targets, part: str, windows: str) -> Targets:
    """Return all training examples; for other parts, all examples or the last one of each user."""
    if part == "train" or windows == "all" or not len(rows):
        return rows
    return rows[np.append(rows[1:, 0] != rows[:-1, 0], True)]  # a user's rows are adjacent


def _refuse_empty(rows: dict[str, Targets], min_history: int, what: str) -> None:
    empty = [part for part in SPLITS if not len(rows[part])]
    if empty:
        raise DataError(
            f"the split leaves no example for {' and '.join(empty)} ({what}, min_history={min_history}): the "
            "histories are too short. Lower --min-history (`min_history` in a recipe), or split by leave-last-out"
        )
