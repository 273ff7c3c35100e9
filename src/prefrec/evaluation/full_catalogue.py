"""Full ranking: the target among all items that the user has not seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation.metrics import target_ranks
from prefrec.rankers.base import Ranker


def whole_catalogue(
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]] | None = None,
) -> list[RankingExample]:
    """Return the examples with all unseen items as candidates, in the catalogue's order.

    Args:
        examples: their candidates are ignored.
        seen: items that each row's user took before its target [B], from `prefrec.data.seen_items`; None: the row's
            history only. The target always stays a candidate.

    Raises:
        ValueError: `seen` and `examples` have different lengths.
    """
    known = [()] * len(examples) if seen is None else seen
    out = []
    for e, own in zip(examples, known, strict=True):
        left_out = {*e.history, *own} - {e.target}
        out.append(replace(e, candidates=tuple(i for i in catalogue.ids if i not in left_out)))
    return out


def full_ranks(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    seen: Sequence[Collection[str]] | None = None,
    *,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the ranks [B], from 1, of the targets among all unseen items, with ties as in `target_ranks`.

    For a language model use a `CatalogueRanker`, because an `LMRanker` would list all items in its prompt.

    Args:
        ranker, examples, catalogue, seen: as in `whole_catalogue`.
        seed: of tie-breaking.
    """
    rows = whole_catalogue(examples, catalogue, seen)
    return target_ranks(ranker.score(rows), [e.target_index for e in rows], seed)
