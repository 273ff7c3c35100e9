"""Full ranking: the target among all items that the user has not seen, instead of a few drawn candidates."""

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
    """The same questions with all items as candidates, in the catalogue's order, but those that were seen.

    Args:
        examples: the questions; their candidates are not used.
        catalogue: all items.
        seen: items that each row's user took before its target [B], as `prefrec.data.seen_items` gives them; None:
            the row's history alone. The target always stays a candidate.

    Raises:
        ValueError: `seen` is not as long as `examples`.
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
    """Ranks [B], from 1, of the targets among all items that were not seen; ties as in `target_ranks`.

    A language model is to be asked as a `CatalogueRanker`: an `LMRanker` would show all items in its prompt.

    Args:
        ranker, examples, catalogue, seen: as in `whole_catalogue`.
        seed: of the tie-breaking draws.
    """
    rows = whole_catalogue(examples, catalogue, seen)
    return target_ranks(ranker.score(rows), [e.target_index for e in rows], seed)
