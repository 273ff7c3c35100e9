"""Candidate sets whose negatives are the targets of other examples, so that rules without the user are at chance.

With uniform negatives, the target comes from the items sold now and the negatives from the full catalogue, so age,
popularity or "never sold" tell them apart. Here both come from one distribution: an item is the target in one of
`size` candidate sets that contain it, so no property of the item helps. The exception is an item that is the target
in more than one of `size` examples that could contain it: it is in all their sets, and still too rarely a negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data.candidates import BLOCK, SampledCandidates

AUTO_RATIO = 2.0
"""`auto` chooses `targets` if never-sold items are this many times as common among targets as in the catalogue."""
LEAST_NEW = 0.01
"""`auto` chooses `targets` only above this fraction of never-sold targets: fewer do not change the metrics."""
# Upper limit on the fraction of examples that contain an item, because a fraction of 1 needs an infinite weight.
_ALWAYS = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class TargetCandidates:
    """Candidate sets of examples with known and with new targets, each sampled from the targets of its class.

    Attributes:
        known: whether each item of the catalogue occurs in training interactions [I].
        by_class: samplers for examples with a new and with a known target; the same for both if a class is too small.
    """

    known: NDArray[np.bool_]
    by_class: tuple[SampledCandidates, SampledCandidates]

    def __call__(
        self,
        rows: NDArray[np.int64],
        owners: NDArray[np.int64],
        positions: NDArray[np.int64],
        targets: NDArray[np.integer[Any]],
    ) -> list[list[int]]:
        """Return the candidates of examples [B], given their users, positions and targets."""
        sampled: list[list[int]] = [[]] * len(rows)
        for number, sampler in enumerate(self.by_class):
            at = np.flatnonzero(self.known[targets] == bool(number))
            of_class = sampler(rows[at], owners[at], positions[at], targets[at]) if len(at) else []
            for row, candidates in zip(at.tolist(), of_class, strict=True):
                sampled[row] = candidates
        return sampled


def target_candidates(
    sampler: SampledCandidates, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]
) -> TargetCandidates:
    """Return the candidate sets of a split's examples.

    Known targets get known negatives, and new targets get new ones. If that leaves an example fewer than `size` - 1
    of them, all targets are one class.

    Args:
        sampler: the sampler whose weights are replaced.
        owners: user of each example [n].
        targets: target of each example [n].
        known: whether each item occurs in training interactions [I].

    Raises:
        DataError: an example has fewer than `size` - 1 negatives even so.
    """
    of_known = known[targets]
    split = [_weighted(sampler, owners[some], targets[some]) for some in (~of_known, of_known)]
    if all(short is None for _, short in split):
        (new, _), (old, _) = split
        return TargetCandidates(known, (new, old))
    joined, short = _weighted(sampler, owners, targets)
    if short is not None:
        joined.check(np.array([short]))
    return TargetCandidates(known, (joined, joined))


def auto_kind(targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]) -> str:
    """Return `targets` if never-sold items are much more common among targets than in the catalogue, else `uniform`.

    In that case "never sold first" and "newest first" would find the targets among uniform negatives. The limits are
    `AUTO_RATIO` and `LEAST_NEW`.

    Args:
        targets: targets of validation and test [n].
        known: whether each item occurs in training interactions [I].
    """
    among_targets, among_items = float((~known[targets]).mean()), float((~known).mean())
    differ = among_targets > AUTO_RATIO * among_items and among_targets > LEAST_NEW
    return "targets" if differ else "uniform"


def _weighted(
    sampler: SampledCandidates, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]]
) -> tuple[SampledCandidates, int | None]:
    """Return a sampler in which an item is a negative `size` - 1 times as often as it is a target of these examples.

    The second result is a user with too few items to sample from, or None.
    """
    n_items = len(sampler.weights)
    times = np.bincount(targets, minlength=n_items)
    rows = np.bincount(owners, minlength=len(sampler.users))
    barred, per_user = _touched(sampler, times > 0, rows)
    # An item cannot be a negative for users who touched it. For the others it is one more often, to compensate.
    share = (sampler.size - 1) * times / np.maximum(len(targets) - barred, 1)
    weights = -np.log1p(-np.minimum(share, _ALWAYS))
    free = np.count_nonzero(times) - per_user
    short = np.flatnonzero((rows > 0) & (free < sampler.size - 1))
    return replace(sampler, weights=weights), int(short[0]) if len(short) else None


def _touched(
    sampler: SampledCandidates, chosen: NDArray[np.bool_], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return per item [I] the number of examples whose user touched it, and per user the number of `chosen` items.

    `rows` are the numbers of examples per user.
    """
    barred, per_user = np.zeros(len(chosen)), np.zeros(len(rows), dtype=np.int64)
    keys = sampler.touched[:-1]
    for start in range(0, len(keys), BLOCK):
        some = keys[start : start + BLOCK]
        before = keys[start - 1] if start else -1
        users, items = np.divmod(some[np.diff(some, prepend=before) > 0], len(chosen))
        kept = chosen[items] & (rows[users] > 0)
        barred += np.bincount(items[kept], rows[users[kept]], minlength=len(chosen))
        per_user += np.bincount(users[kept], minlength=len(rows))
    return barred, per_user
