"""Candidate sets whose negatives are the targets of other examples, so that rules without the user are at chance.

With uniform negatives, the target comes from the items sold now and the negatives from the full catalogue, so age,
popularity or "never sold" tell them apart. Here both come from one distribution: an item is the target in one of
`size` candidate sets that contain it, so no property of the item helps. The exception is an item that is the target
in more than one of `size` examples that could contain it: it is in all their sets, and still too rarely a negative.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data.candidates import SampledCandidates
from prefrec.data.rows import CandidateSets

AUTO_RATIO = 2.0
"""`auto` chooses `targets` if never-sold items are this many times as common among targets as in the catalogue."""
LEAST_NEW = 0.01
"""`auto` chooses `targets` only above this fraction of never-sold targets: fewer do not change the metrics."""
# Upper limit on the fraction of examples that contain an item, because a fraction of 1 needs an infinite weight.
_ALWAYS = 1 - 1e-6
Ints = NDArray[np.int64]


def target_candidates(
    sampler: SampledCandidates, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]
) -> CandidateSets:
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
    by_class = [(owners[some], targets[some]) for some in (~of_known, of_known)]
    new_and_known = [_weighted(sampler, *examples) for examples in by_class]
    is_short = False
    for of_class, examples in zip(new_and_known, by_class, strict=True):
        short, _ = of_class.short(*examples)
        is_short |= len(short) > 0
    if is_short:
        joined = _weighted(sampler, owners, targets)
        joined.check(owners, targets)
        new_and_known = [joined, joined]

    def sets(rows: Ints, owners: Ints, positions: Ints, targets: NDArray[np.int32]) -> list[list[int]]:
        sampled = np.empty((len(rows), sampler.size), dtype=np.int64)
        for is_known, of_class in enumerate(new_and_known):
            at = np.flatnonzero(known[targets] == bool(is_known))
            if len(at):
                sampled[at] = of_class(rows[at], owners[at], positions[at], targets[at])
        return sampled.tolist()

    return sets


def auto_kind(targets: NDArray[np.integer[Any]], known: NDArray[np.bool_]) -> str:
    """Return `targets` if never-sold items are much more common among targets than in the catalogue, else `uniform`.

    In that case "never sold first" and "newest first" would find the targets among uniform negatives. The limits are
    `AUTO_RATIO` and `LEAST_NEW`. `targets` are those of validation and test [n]; `known` is whether each item occurs
    in training interactions [I].
    """
    among_targets, among_items = float((~known[targets]).mean()), float((~known).mean())
    return "targets" if among_targets > max(AUTO_RATIO * among_items, LEAST_NEW) else "uniform"


def _weighted(
    sampler: SampledCandidates, owners: NDArray[np.int64], targets: NDArray[np.integer[Any]]
) -> SampledCandidates:
    """Return a sampler of items that are negatives `size` - 1 times as often as targets of these examples."""
    times = np.bincount(targets, minlength=len(sampler.weights))
    rows = np.bincount(owners, minlength=len(sampler.users))
    barred = np.zeros(len(times))  # examples whose user touched the item
    for users, items in sampler.touched_pairs():
        barred += np.bincount(items, rows[users], minlength=len(times))
    # An item cannot be a negative for users who touched it. For the others it is one more often, to compensate.
    share = (sampler.size - 1) * times / np.maximum(len(targets) - barred, 1)
    return replace(sampler, weights=-np.log1p(-np.minimum(share, _ALWAYS)))
