"""Candidate lists whose negatives are the targets of other rows: rules that do not know the user are at chance.

In uniform lists the target is drawn from what is sold now and the negatives from the whole catalogue, so age,
popularity or "never sold" can tell them apart. Here both come from one distribution. Each item is the target of one
in `size` of the lists that show it, so no property of an item helps, unless it is the target of more than one in
`size` of the rows that could show it: it is then in all their lists, and still too rarely a negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data.candidates import BLOCK, DrawnLists

AUTO_RATIO = 2.0
"""Least ratio of never-sold items among targets to those of the catalogue at which `auto` chooses `targets`."""
LEAST_NEW = 0.01
"""Least share of never-sold targets at which `auto` chooses `targets`: a few of them change no table."""
# Highest share of rows that show an item, because the weight of 1 is infinite.
_ALWAYS = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class TargetLists:
    """Lists of rows with known and with new targets, each drawn from the targets of its own class.

    Attributes:
        known: of the catalogue's items [I], whether training interactions have them.
        by_class: the lists of rows with a new and with a known target; the same for both if a class is too small.
    """

    known: NDArray[np.bool_]
    by_class: tuple[DrawnLists, DrawnLists]

    def __call__(
        self,
        rows: NDArray[np.int64],
        owners: NDArray[np.int64],
        positions: NDArray[np.int64],
        targets: NDArray[np.integer[Any]],
    ) -> list[list[int]]:
        """Return the candidates of rows [B], given their users, positions and targets."""
        drawn: list[list[int]] = [[]] * len(rows)
        for number, lists in enumerate(self.by_class):
            at = np.flatnonzero(self.known[targets] == bool(number))
            own = lists(rows[at], owners[at], positions[at], targets[at]) if len(at) else []
            for place, listed in zip(at.tolist(), own, strict=True):
                drawn[place] = listed
        return drawn


def target_lists(
    lists: DrawnLists, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]
) -> TargetLists:
    """Return the lists of a split's rows, given their users, their targets [n] and the `known` items [I].

    Known targets are listed with known ones and new with new. If that leaves a row fewer than `size` - 1 of them, all
    targets are one class. Raise DataError if a row then still has too few.
    """
    of_known = known[targets]
    split = [_weighted(lists, owners[own], targets[own]) for own in (~of_known, of_known)]
    if all(short is None for _, short in split):
        (new, _), (old, _) = split
        return TargetLists(known, (new, old))
    joined, short = _weighted(lists, owners, targets)
    if short is not None:
        joined.check(np.array([short]))
    return TargetLists(known, (joined, joined))


def auto_kind(targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]) -> str:
    """Return `targets` if never-sold items are more than `AUTO_RATIO` times as common in targets [n], else `uniform`.

    They are compared with the share among the catalogue's items (`known` [I]): then "never sold first" and "newest
    first" find targets in uniform lists.
    """
    among_targets, among_items = float((~known[targets]).mean()), float((~known).mean())
    differ = among_targets > AUTO_RATIO * among_items and among_targets > LEAST_NEW
    return "targets" if differ else "uniform"


def _weighted(
    lists: DrawnLists, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]]
) -> tuple[DrawnLists, int | None]:
    """Return lists that show each item as a negative `size` - 1 times as often as it is the target of these rows.

    The second is a user whose rows have too few items to draw from, or None.
    """
    n_items = len(lists.weights)
    times = np.bincount(targets, minlength=n_items)
    rows = np.bincount(owners, minlength=len(lists.users))
    barred, own = _touched(lists, times > 0, rows)
    # Rows whose user touched an item cannot show it as a negative; the others show it more often for that.
    share = (lists.size - 1) * times / np.maximum(len(targets) - barred, 1)
    weights = -np.log1p(-np.minimum(share, _ALWAYS))
    free = np.count_nonzero(times) - own
    short = np.flatnonzero((rows > 0) & (free < lists.size - 1))
    return replace(lists, weights=weights), int(short[0]) if len(short) else None


def _touched(
    lists: DrawnLists, chosen: NDArray[np.bool_], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return how many rows have a user who touched each item [I], and how many `chosen` items each user touched."""
    barred, own = np.zeros(len(chosen)), np.zeros(len(rows), dtype=np.int64)
    keys = lists.taken[:-1]
    for start in range(0, len(keys), BLOCK):
        some = keys[start : start + BLOCK]
        before = keys[start - 1] if start else -1
        users, items = np.divmod(some[np.diff(some, prepend=before) > 0], len(chosen))
        kept = chosen[items] & (rows[users] > 0)
        barred += np.bincount(items[kept], rows[users[kept]], minlength=len(chosen))
        own += np.bincount(users[kept], minlength=len(rows))
    return barred, own
