"""The slow twin of a full ranking: ranks and ties of targets among all items that the user did not take before."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import target_ranks
from prefrec.rankers import Ranker


def whole_catalogue(
    examples: Sequence[RankingExample], catalogue: Catalogue, seen: Sequence[Collection[str]] | None = None
) -> list[RankingExample]:
    """The examples with all unseen items as candidates, in the catalogue's order; the target always stays one."""
    rows = []
    for e, taken in zip(examples, [()] * len(examples) if seen is None else seen, strict=True):
        left_out = {*e.history, *taken} - {e.target}
        rows.append(replace(e, candidates=tuple(i for i in catalogue.ids if i not in left_out)))
    return rows


def full_ranks(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = whole_catalogue(examples, catalogue, seen)
    return target_ranks(ranker.score(rows), [e.target_index for e in rows])
