"""Rankers without a model for the reference rows of every table.

Random, popularity, co-occurrence and item-kNN are here; `window` and `title_words` hold the two stronger ones. They
learn from training interactions (a frame `user_id, item_id, timestamp`), in which items that never occur score 0;
`title TF-IDF` reads titles instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.base import Ranker
from prefrec.rankers.rows import blocks, history_matrix, pad_scores, score_by_rows, user_item_matrix
from prefrec.rankers.title_words import TitleTfidfRanker
from prefrec.rankers.window import WindowCooccurrenceRanker


@dataclass(eq=False)
class RandomRanker:
    """A uniform score from a hash of (seed, user, history, candidate).

    The same question gets the same answer, whatever the batch and the order of the candidates.
    """

    seed: int = 0
    name: str = "random"

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C] in [0, 1)."""
        return pad_scores([self._row(e) for e in examples])

    def _row(self, example: RankingExample) -> list[float]:
        key = "\x1f".join((str(self.seed), example.user_id, *example.history, ""))
        prefix = blake2b(key.encode(), digest_size=8)
        scores = []
        for candidate in example.candidates:
            h = prefix.copy()
            h.update(candidate.encode())
            scores.append((struct.unpack("<Q", h.digest())[0] >> 11) * 2.0**-53)
        return scores


@dataclass(eq=False)
class PopularityRanker:
    """Score of a candidate = number of training users who took it."""

    counts: dict[str, int]
    name: str = "popularity"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Count the distinct users of each item."""
        counts = train_interactions.group_by("item_id").agg(pl.col("user_id").n_unique().alias("users"))
        return cls(dict(zip(counts["item_id"].to_list(), counts["users"].to_list(), strict=True)))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C]: counts."""
        return pad_scores([[float(self.counts.get(c, 0)) for c in e.candidates] for e in examples])


@dataclass(eq=False)
class CooccurrenceRanker:
    """Score of a candidate = number of training users who took both it and the last item of the history.

    count(l, c) = (XᵀX)[l, c] with X the binary user × item matrix: co-occurrence anywhere in a user's log,
    without regard to order. An example without history scores 0 everywhere. Rows of training users contain
    their own answer (their target is in the log): only held-out rows are measured fairly.
    """

    matrix: sparse.csr_array
    index: dict[str, int]
    name: str = "co-occurrence"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Keep the binary user × item matrix; counts are taken when asked for."""
        return cls(*user_item_matrix(train_interactions))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C]: counts."""
        lasts = history_matrix([e.history[-1:] for e in examples], self.index)
        return score_by_rows(lasts, [self.matrix.T.tocsr(), self.matrix], examples, self.index)


@dataclass(eq=False)
class ItemKNNRanker:
    """Score of candidate c = Σ over history items i among the k nearest neighbours of c of s(c, i).

    s(c, i) = |U_c ∩ U_i| / (√(|U_c|·|U_i|) + shrink): cosine similarity of the binary user × item matrix's
    columns (Sarwar et al. 2001; Deshpande and Karypis 2004); `shrink` pulls rare items' similarities to 0.
    """

    similarity: sparse.csr_array
    index: dict[str, int]
    name: str = "item-kNN"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame, k: int = 200, shrink: float = 10.0) -> Self:
        """Keep the `k` most similar items of each item."""
        matrix, index = user_item_matrix(train_interactions)
        items = matrix.T.tocsr()
        norms = np.sqrt(np.diff(items.indptr))
        parts = [
            _nearest((items[rows] @ matrix).toarray(), norms[rows], norms, rows, k, shrink)
            for rows in blocks(len(index), len(index))
        ]
        empty = sparse.csr_array((0, len(index)))
        return cls(sparse.csr_array(sparse.vstack([empty, *parts], format="csr")), index)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C]: sums of similarities."""
        histories = history_matrix([e.history for e in examples], self.index)
        return score_by_rows(histories, [self.similarity.T.tocsr()], examples, self.index)


_REFERENCES: dict[str, Callable[[pl.DataFrame, Catalogue, int, Sequence[RankingExample]], Ranker]] = {
    RandomRanker.name: lambda _log, _items, seed, _rows: RandomRanker(seed),
    PopularityRanker.name: lambda log, _items, _seed, _rows: PopularityRanker.fit(log),
    CooccurrenceRanker.name: lambda log, _items, _seed, _rows: CooccurrenceRanker.fit(log),
    ItemKNNRanker.name: lambda log, _items, _seed, _rows: ItemKNNRanker.fit(log),
    WindowCooccurrenceRanker.name: lambda log, _items, _seed, rows: WindowCooccurrenceRanker.fit(
        log, validation=rows
    ),
    TitleTfidfRanker.name: lambda _log, items, _seed, _rows: TitleTfidfRanker.fit(items),
}
"""Name → the fitted ranker; in the order of the tables."""


def reference_rankers(
    train_interactions: pl.DataFrame,
    catalogue: Catalogue,
    seed: int = 0,
    names: Collection[str] = tuple(_REFERENCES),
    validation: Sequence[RankingExample] = (),
) -> list[Ranker]:
    """Return the reference rankers, fitted, in the order of the tables.

    Args:
        train_interactions: what they learn from.
        catalogue: titles of all items, which `title TF-IDF` compares.
        seed: of `random`.
        names: those that are wanted.
        validation: rows that choose the settings of `window co-occurrence`; none: its defaults.
    """
    made = [make for name, make in _REFERENCES.items() if name in names]
    return [make(train_interactions, catalogue, seed, validation) for make in made]


def reference_ranker(
    name: str,
    train_interactions: pl.DataFrame,
    catalogue: Catalogue,
    seed: int = 0,
    validation: Sequence[RankingExample] = (),
) -> Ranker:
    """Return the one of `reference_rankers` with this name."""
    (ranker,) = reference_rankers(train_interactions, catalogue, seed, {name}, validation)
    return ranker


def _nearest(
    counts: NDArray[np.float64],
    own: NDArray[np.float64],
    norms: NDArray[np.float64],
    rows: slice,
    k: int,
    shrink: float,
) -> sparse.csr_array:
    """The k largest similarities in each row of a block: counts [b, I], norms own [b] and norms [I]."""
    similarity = counts / (own[:, None] * norms[None, :] + shrink)
    similarity[np.arange(len(own)), np.arange(rows.start, rows.stop)] = 0.0
    if k < similarity.shape[1]:
        floor = np.partition(similarity, -k, axis=1)[:, -k]
        similarity[similarity < floor[:, None]] = 0.0
    return sparse.csr_array(similarity)
