"""Sample the candidate set of each example: the target and items that the user has never interacted with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.rows import CandidateSets, RankingExample
from prefrec.data.types import Window
from prefrec.errors import DataError

_ROUNDS = 4
BLOCK = 400_000
"""Candidates sampled, or keys looked up, at a time. It limits memory and does not affect the result."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def draw_candidates(
    windows: Sequence[Window],
    pool: Sequence[str],
    touched: pl.DataFrame,
    *,
    split: str,
    seed: int,
    size: int = 20,
    weights: Mapping[str, float] | None = None,
) -> list[RankingExample]:
    """Return one ranking example per window, with its candidates in random order.

    Negatives are sampled without replacement from the items of `pool` that the user has not touched. All randomness
    comes from a hash of seed, split, user and position. The target, the other examples and their order therefore
    affect neither the negatives nor the position of the target.

    Args:
        windows: examples without candidates.
        pool: ids of the items to sample from.
        touched: `user_id, item_id` of every interaction at any time, including later ones and low ratings.
        split, seed: parts of the hash.
        size: candidates per example, including the target.
        weights: item id → sampling weight. Default: uniform.

    Raises:
        DataError: a user has fewer than `size` - 1 items to sample from.
    """
    users = sorted({w.user_id for w in windows})
    kinds = {"user_id": pl.Enum(users), "item_id": pl.Enum(pool)}
    known = touched.select(pl.col(c).cast(kind, strict=False).to_physical() for c, kind in kinds.items()).drop_nulls()
    keys = pair_keys((column.to_numpy() for column in known), len(pool))
    shares = np.array([1.0 if weights is None else weights.get(i, 0.0) for i in pool])
    sampled = SampledCandidates(pl.Series(users, dtype=pl.String), shares, keys, split, seed, size)
    return with_candidates(windows, window_codes(windows, users, pool), pool, sampled, size)


def window_codes(windows: Sequence[Window], users: Iterable[str], ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the user, the position and the target of windows [n, 3]; users and items are indices."""
    user_codes, codes = ({name: i for i, name in enumerate(names)} for names in (users, ids))
    rows = [(user_codes[w.user_id], w.position, codes[w.target]) for w in windows]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def with_candidates(
    windows: Sequence[Window],
    columns: NDArray[np.int64],
    ids: Sequence[str],
    sets: CandidateSets,
    size: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[RankingExample]:
    """Return the examples of windows with candidates from `sets`, which has `size` candidates each.

    `columns` are the windows' `window_codes`; `progress` wraps the loop over blocks of windows.
    """
    examples: list[RankingExample] = []
    block = max(1, BLOCK // size)
    for start in progress(range(0, len(windows), block)):
        owners, positions, targets = columns[start : start + block].T
        both = zip(windows[start : start + block], sets(owners, owners, positions, targets), strict=True)
        examples += (
            RankingExample(w.user_id, w.history, tuple(ids[i] for i in drawn), w.target) for w, drawn in both
        )
    return examples


def published_candidates(
    windows: Iterable[Window | RankingExample], pool: Sequence[str], size: int = 20
) -> list[RankingExample]:
    """Return examples with the candidate sets of the S-DPO authors' data, reproduced item for item.

    The authors seed Python's `random` with the target's id and ignore the user, so a target always has the same
    position and mostly the same negatives. Use these only to compare with published numbers. Raise DataError if an id
    is not a whole number, or if the pool is too small.
    """
    index, codes = {item: i for i, item in enumerate(pool)}, np.arange(len(pool))
    examples = []
    for window in windows:
        if not window.target.isdecimal():
            raise DataError(f"published candidate sets need whole numbers as item ids, found {window.target!r}")
        free = np.delete(codes, [index[i] for i in (*window.history, window.target)])
        if len(free) < size - 1:
            raise _too_few(window.user_id, len(free), size)
        # Both draws start from the same seed, as in the authors' code.
        rng = random.Random(int(window.target))
        candidates = [*(pool[free[i]] for i in rng.sample(range(len(free)), size - 1)), window.target]
        rng.seed(int(window.target))
        rng.shuffle(candidates)
        examples.append(RankingExample(window.user_id, window.history, tuple(candidates), window.target))
    return examples


def popularity_weights(train_interactions: pl.DataFrame, pool: Sequence[str]) -> dict[str, float]:
    """Return the number of training interactions of each item, plus one."""
    # Without the + 1, an item that first appears after training could be a candidate only as the target.
    counts = dict(train_interactions.group_by("item_id").len().iter_rows())
    return {item: float(counts.get(item, 0) + 1) for item in pool}


def item_weights(kind: str, learnt: NDArray[np.int32], n_items: int) -> NDArray[np.float64]:
    """Return the sampling weights of all items [I] for a kind of candidates, given the items that are learnt [n]."""
    weights = np.ones(n_items)
    return weights + np.bincount(learnt, minlength=n_items) if kind == "popularity" else weights


def row_keys(users: Iterable[str], positions: Iterable[int], split: str, seed: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of seed, split, user and position per example [B]; it is the same on every machine."""
    texts = (f"{seed}\x1f{split}\x1f{u}\x1f{p}".encode() for u, p in zip(users, positions, strict=True))
    digests = b"".join(hashlib.blake2b(t, digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def pair_keys(pairs: Iterable[NDArray[np.integer[Any]]], n_items: int) -> NDArray[np.int64]:
    """Return the sorted keys user × `n_items` + item of user-item pairs, followed by a sentinel larger than all.

    `pairs` are the user indices [n] and the item indices [n].
    """
    users, items = pairs
    keys = np.empty(len(users) + 1, dtype=np.int64)
    np.multiply(users, n_items, out=keys[:-1], dtype=np.int64)
    keys[:-1] += items
    keys[-1] = np.iinfo(np.int64).max
    keys.sort()
    return keys


def keys_without(keys: NDArray[np.int64], excluded: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sorted `keys` that are not among `excluded` (both from `pair_keys`); the sentinel stays."""
    kept = np.empty(len(keys), dtype=bool)
    # The search results of all keys at once would take as much memory as the keys.
    for start in range(0, len(keys), BLOCK):
        block = keys[start : start + BLOCK]
        kept[start : start + BLOCK] = excluded[np.searchsorted(excluded, block)] != block
    kept[-1:] |= keys[-1:] == excluded[-1]
    return keys[kept]


def _too_few(user: str, free: int, size: int) -> DataError:
    lower = f"lower --candidates.size to {free + 1} or less (`candidates.size` in a recipe), or " if free else ""
    return DataError(
        f"user {user!r} has only {free} unseen items, but {size} candidates need {size - 1} negatives: {lower}use a "
        "larger catalogue"
    )


@dataclass(frozen=True, eq=False)
class SampledCandidates:
    """Candidate sets that are sampled on access, as in `draw_candidates`.

    Attributes:
        users: user ids. Users and items are elsewhere indices, into this and into the catalogue.
        weights: sampling weight of each item of the catalogue [I].
        touched: keys of the user-item pairs that are never negatives (`pair_keys`).
        split, seed: parts of the hash from which all randomness comes.
        size: candidates per example, including the target.
    """

    users: pl.Series
    weights: NDArray[np.float64]
    touched: NDArray[np.int64]
    split: str
    seed: int
    size: int

    @cached_property
    def cumulative(self) -> NDArray[np.float64]:
        """Cumulative weights of the items [I]."""
        return self.weights.cumsum()

    @cached_property
    def drawable(self) -> NDArray[np.int64]:
        """Indices of the items with a positive weight."""
        return np.flatnonzero(self.weights)

    def __call__(
        self,
        rows: NDArray[np.int64],
        owners: NDArray[np.int64],
        positions: NDArray[np.int64],
        targets: NDArray[np.integer[Any]],
    ) -> list[list[int]]:
        """Return the candidates of examples [B], given their users, positions and targets."""
        keys = row_keys(self.users[owners], positions.tolist(), self.split, self.seed)
        shuffle = np.argsort(_uniform(keys, np.arange(self.size), stream=2), axis=1)
        unshuffled = np.column_stack([targets, self._negatives(owners, targets, keys)])
        return np.take_along_axis(unshuffled, shuffle, axis=1).tolist()

    def check(self, users: NDArray[np.int64], targets: NDArray[np.integer[Any]] | None = None) -> None:
        """Raise DataError if `short` finds one of these users."""
        short, free = self.short(users, targets)
        if len(short):
            raise _too_few(self.users[int(short[0])], int(free[0]), self.size)

    def short(
        self, users: NDArray[np.int64], targets: NDArray[np.integer[Any]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return those of `users` with fewer than `size` - 1 items to sample from, and how many items they have.

        With `targets`, `users` are the users of examples with these targets. An example cannot sample its own target,
        which its user has not touched in data that keep repeats.
        """
        available = len(self.drawable)
        starts = np.searchsorted(self.touched, np.arange(len(self.users) + 1) * len(self.weights))
        needed = self.size - 1 if targets is None else self.size
        if available - np.diff(starts).max(initial=0) >= needed:
            return users[:0], users[:0]  # even counting repeats, and each target apart from what is touched
        of_user = np.full(len(self.users), available)
        for owners, items in self.touched_pairs():
            of_user -= np.bincount(owners[self.weights[items] > 0], minlength=len(of_user))
        free = of_user[users]
        if targets is not None:
            # Users may be 32-bit numbers, in which keys would overflow.
            is_touched = self._is_touched(users.astype(np.int64) * len(self.weights) + targets)
            free[~is_touched & (self.weights[targets] > 0)] -= 1
        is_short = free < self.size - 1
        return users[is_short], free[is_short]

    def touched_pairs(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield users and items of the pairs in `touched`, each pair once."""
        keys = self.touched[:-1]
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            before = keys[start - 1] if start else -1
            yield np.divmod(block[np.diff(block, prepend=before) > 0], len(self.weights))

    def _negatives(
        self, rows: NDArray[np.int64], target_codes: NDArray[np.integer[Any]], keys: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Return the negatives of examples [B, size - 1]."""
        chosen = np.full((len(rows), self.size - 1), -1)
        filled = np.zeros(len(rows), dtype=np.int64)
        # Rejection sampling is cheap while few draws collide. In a small catalogue most draws would be repeats, so
        # every example goes to the exact but slower `_finish`.
        per_round = 2 * self.size
        worth_trying = self.size * 8 < len(self.drawable)
        for number in range(_ROUNDS if worth_trying else 0):
            todo = np.flatnonzero(filled < self.size - 1)
            if not len(todo):
                break
            uniform = _uniform(keys[todo], np.arange(number * per_round, (number + 1) * per_round), stream=0)
            # The product stays below the total even after rounding, so it always falls on an item.
            draws = np.searchsorted(self.cumulative, uniform * self.cumulative[-1], side="right")
            touched = self._is_touched(rows[todo, None] * len(self.weights) + draws)
            allowed = (draws != target_codes[todo, None]) & ~touched
            for items, good in zip(draws.T, allowed.T, strict=True):
                good = good & (filled[todo] < self.size - 1) & ~(chosen[todo] == items[:, None]).any(axis=1)
                at = todo[good]
                chosen[at, filled[at]] = items[good]
                filled[at] += 1
        for row in np.flatnonzero(filled < self.size - 1).tolist():
            self._finish(int(rows[row]), int(target_codes[row]), keys[row], chosen[row], int(filled[row]))
        return chosen

    def _finish(self, user: int, target: int, key: np.uint64, chosen: NDArray[np.int64], count: int) -> None:
        """Complete `chosen`, of which the first `count` negatives are sampled, in place."""
        free = self.drawable[~self._is_touched(user * len(self.weights) + self.drawable)]
        free = free[free != target]
        if len(free) < self.size - 1:
            raise _too_few(self.users[user], len(free), self.size)
        remaining = free[~np.isin(free, chosen[:count])]
        uniform = _uniform(np.array([key]), remaining, stream=1)[0]
        # The order of exponential arrival times (rate = weight) is a weighted sample without replacement, which is
        # the distribution of the rejection rounds.
        arrival = -np.log1p(-uniform) / self.weights[remaining]
        chosen[count:] = remaining[np.argsort(arrival)[: self.size - 1 - count]]

    def _is_touched(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.touched[np.searchsorted(self.touched, keys)] == keys


def _uniform(keys: NDArray[np.uint64], counters: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1) [B, K] that depend only on key, stream and counter (SplitMix64)."""
    with np.errstate(over="ignore"):  # the hash relies on 64-bit wrap-around
        state = _mix(keys + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03))[:, None]
        bits = _mix(state + (counters.astype(np.uint64)[None, :] + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
