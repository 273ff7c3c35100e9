"""The slow twin of a full ranking: ranks and ties of targets among all items that the user did not take before."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import target_ranks, whole_catalogue
from prefrec.rankers import Ranker


def full_ranks(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = whole_catalogue(examples, catalogue, seen)
    return target_ranks(ranker.score(rows), [e.target_index for e in rows])
