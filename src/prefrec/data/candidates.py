"""Draw the candidate list of each row: the target among items that the user never touched."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.types import RankingExample, Window
from prefrec.errors import DataError

_ROUNDS = 4
# Candidates drawn at once. It bounds memory and does not change the lists.
_BLOCK = 400_000
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
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[RankingExample]:
    """Return one ranking example per window, its `size` candidates in random order.

    Negatives are drawn without replacement, in proportion to `weights` (None: alike), from the items of `pool` that
    the user has not touched. All randomness comes from a hash of seed, split, user and position, so the target, the
    other rows and their order change neither a row's negatives nor the position of its target.

    `touched` is `user_id, item_id` of every interaction at any time, later ones and low ratings included. `progress`
    wraps the loop over blocks of rows. Raise DataError if a user has fewer than `size` - 1 items to draw from.
    """
    sampler = _Sampler(pool, weights, touched, {w.user_id for w in windows}, size)
    examples: list[RankingExample] = []
    block = max(1, _BLOCK // size)
    for start in progress(range(0, len(windows), block)):
        part = windows[start : start + block]
        keys = row_keys(part, split, seed)
        negatives = sampler.negatives([w.user_id for w in part], [w.target for w in part], keys)
        shuffle = np.argsort(_uniform(keys, np.arange(size), stream=2), axis=1)
        for window, drawn, order in zip(part, negatives.tolist(), shuffle.tolist(), strict=True):
            listed = [window.target, *(pool[i] for i in drawn)]
            candidates = tuple(listed[i] for i in order)
            examples.append(RankingExample(window.user_id, window.history, candidates, window.target))
    return examples


def published_candidates(windows: Sequence[Window], pool: Sequence[str], size: int = 20) -> list[RankingExample]:
    """Return the candidate lists of the S-DPO authors' data, reproduced item for item.

    Their rule seeds Python's `random` with the target's id and ignores the user, so a target always has the same
    position and mostly the same negatives. Use it only to compare with published numbers. Raise DataError if an id is
    not a whole number, or the pool is too small.
    """
    index, codes = {item: i for i, item in enumerate(pool)}, np.arange(len(pool))
    examples = []
    for window in windows:
        if not window.target.isdecimal():
            raise DataError(f"published candidate lists need whole numbers as item ids, found {window.target!r}")
        free = np.delete(codes, [index[i] for i in (*window.history, window.target)])
        if len(free) < size - 1:
            raise _too_few(window.user_id, len(free), size)
        # Both draws start from the same seed, as in the authors' code.
        rng = random.Random(int(window.target))
        listed = [*(pool[free[i]] for i in rng.sample(range(len(free)), size - 1)), window.target]
        rng.seed(int(window.target))
        rng.shuffle(listed)
        examples.append(RankingExample(window.user_id, window.history, tuple(listed), window.target))
    return examples


def popularity_weights(train_interactions: pl.DataFrame, pool: Sequence[str]) -> dict[str, float]:
    """Return the number of training interactions of each item, plus one."""
    # Without the one, an item that first appears after training could only be listed as a target.
    counts = dict(train_interactions.group_by("item_id").len().iter_rows())
    return {item: float(counts.get(item, 0) + 1) for item in pool}


def row_keys(windows: Sequence[Window], split: str, seed: int) -> NDArray[np.uint64]:
    """Return a 64-bit key per window [B] from seed, split, user and position; the same on every machine."""
    texts = (f"{seed}\x1f{split}\x1f{w.user_id}\x1f{w.position}".encode() for w in windows)
    digests = b"".join(hashlib.blake2b(t, digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _too_few(user: str, free: int, size: int) -> DataError:
    return DataError(
        f"user {user!r} leaves {free} items to draw from, but {size} candidates need {size - 1} negatives: "
        f"lower --candidates.size to {free + 1} or less (`candidates.size` in a recipe), or take a larger catalogue"
    )


class _Sampler:
    """A weighted sampler without replacement for many rows at once that avoids each user's own items."""

    def __init__(
        self,
        pool: Sequence[str],
        weights: Mapping[str, float] | None,
        touched: pl.DataFrame,
        users: set[str],
        size: int,
    ) -> None:
        self.size = size
        self.codes = {item: i for i, item in enumerate(pool)}
        self.weights = np.array([1.0 if weights is None else weights.get(i, 0.0) for i in pool])
        self.cumulative = np.cumsum(self.weights)
        self.users = {user: i for i, user in enumerate(sorted(users))}
        own_log = touched.filter(pl.col("user_id").is_in(list(users)) & pl.col("item_id").is_in(list(pool)))
        pairs = own_log.select("user_id", "item_id").iter_rows()
        taken = [self.users[u] * len(pool) + self.codes[i] for u, i in pairs]
        # Sorted, so that `_is_taken` can bisect. The last entry is larger than every key.
        self.taken = np.append(np.unique(np.array(taken, dtype=np.int64)), np.iinfo(np.int64).max)

    def negatives(self, users: Sequence[str], targets: Sequence[str], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the codes of `size` - 1 negatives per row [B, size - 1]."""
        rows = np.array([self.users[u] for u in users])
        target_codes = np.array([self.codes[t] for t in targets])
        chosen = np.full((len(rows), self.size - 1), -1)
        filled = np.zeros(len(rows), dtype=np.int64)
        # Rejection is cheap while few draws collide. In a small catalogue most draws would be repeats, so every row
        # goes to the exact but slower `_finish`.
        per_round = 2 * self.size
        worth_trying = self.size * 8 < len(self.weights)
        for number in range(_ROUNDS if worth_trying else 0):
            todo = np.flatnonzero(filled < self.size - 1)
            if not len(todo):
                break
            uniform = _uniform(keys[todo], np.arange(number * per_round, (number + 1) * per_round), stream=0)
            draws = np.searchsorted(self.cumulative, uniform * self.cumulative[-1], side="right")
            # Rounding can push a product up to the total, which is one past the last item.
            draws = np.minimum(draws, len(self.cumulative) - 1)
            taken = self._is_taken(rows[todo, None] * len(self.weights) + draws)
            wanted = (draws != target_codes[todo, None]) & ~taken
            for items, good in zip(draws.T, wanted.T, strict=True):
                good = good & (filled[todo] < self.size - 1) & ~(chosen[todo] == items[:, None]).any(axis=1)
                at = todo[good]
                chosen[at, filled[at]] = items[good]
                filled[at] += 1
        for row in np.flatnonzero(filled < self.size - 1).tolist():
            self._finish(users[row], target_codes[row], keys[row], chosen[row], int(filled[row]))
        return chosen

    def _finish(self, user: str, target: int, key: np.uint64, chosen: NDArray[np.int64], count: int) -> None:
        """Fill a row of which `count` negatives are chosen, in place."""
        codes = np.arange(len(self.weights))
        free = (self.weights > 0) & ~self._is_taken(self.users[user] * len(self.weights) + codes)
        free[target] = False
        total = int(free.sum())
        if total < self.size - 1:
            raise _too_few(user, total, self.size)
        free[chosen[:count]] = False
        remaining = np.flatnonzero(free)
        uniform = _uniform(np.array([key]), remaining, stream=1)[0]
        # The order of exponential arrivals (rate = weight) is a weighted draw without replacement, as in the rounds
        # before.
        arrival = -np.log1p(-uniform) / self.weights[remaining]
        chosen[count:] = remaining[np.argsort(arrival)[: self.size - 1 - count]]

    def _is_taken(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self.taken[np.searchsorted(self.taken, keys)] == keys)


def _uniform(keys: NDArray[np.uint64], counters: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) [B, K] that depend on key, stream and counter alone (SplitMix64)."""
    with np.errstate(over="ignore"):  # the hash relies on 64-bit wrap-around
        state = _mix(keys + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03))[:, None]
        bits = _mix(state + (counters.astype(np.uint64)[None, :] + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
