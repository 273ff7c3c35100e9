"""Rankers without a model for the reference rows of every table: random, popularity, co-occurrence, item-kNN.

They learn from training interactions only (a frame `user_id, item_id, timestamp`). Items that never occur
there score 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

from prefrec.data import RankingExample
from prefrec.rankers.base import Ranker

_CELLS_AT_A_TIME = 8_000_000
"""Cells of a dense block of scores held in memory at a time."""


def pad_scores(rows: Sequence[Sequence[float] | NDArray[np.float64]]) -> NDArray[np.float64]:
    """[B, C] from B rows of at most C scores, short rows filled with -inf."""
    width = max((len(r) for r in rows), default=0)
    out = np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def pad_codes(rows: Sequence[Sequence[str]], index: dict[str, int]) -> NDArray[np.int64]:
    """[B, L] codes of the items in `rows`: -1 in empty places, len(index) for items not in `index`."""
    width = max((len(r) for r in rows), default=0)
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = [index.get(item, len(index)) for item in row]
    return out


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
        lasts = [[self.index[i] for i in e.history[-1:] if i in self.index] for e in examples]
        return _score_by_rows(self.matrix.T.tocsr(), self.matrix, lasts, examples, self.index)


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
        blocks = [
            _nearest((items[rows] @ matrix).toarray(), norms[rows], norms, rows, k, shrink)
            for rows in _chunks(len(index), len(index))
        ]
        empty = sparse.csr_array((0, len(index)))
        return cls(sparse.csr_array(sparse.vstack([empty, *blocks], format="csr")), index)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C]: sums of similarities."""
        histories = [[self.index[i] for i in e.history if i in self.index] for e in examples]
        identity = sparse.eye_array(len(self.index), format="csr")
        return _score_by_rows(identity, self.similarity.T.tocsr(), histories, examples, self.index)


_REFERENCES: dict[str, Callable[[pl.DataFrame, int], Ranker]] = {
    RandomRanker.name: lambda _, seed: RandomRanker(seed),
    PopularityRanker.name: lambda log, _: PopularityRanker.fit(log),
    CooccurrenceRanker.name: lambda log, _: CooccurrenceRanker.fit(log),
    ItemKNNRanker.name: lambda log, _: ItemKNNRanker.fit(log),
}
"""Name → the fitted ranker, from training interactions and a seed; in the order of the tables."""


def reference_rankers(
    train_interactions: pl.DataFrame, seed: int = 0, names: Collection[str] = tuple(_REFERENCES)
) -> list[Ranker]:
    """Random, popularity, last-item co-occurrence and item-kNN, fitted, in the order of the tables.

    Args:
        train_interactions: what they learn from.
        seed: of `random`.
        names: those that are wanted.
    """
    return [make(train_interactions, seed) for name, make in _REFERENCES.items() if name in names]


def reference_ranker(name: str, interactions: pl.DataFrame, seed: int = 0) -> Ranker:
    """The one of `reference_rankers` with this name."""
    (ranker,) = reference_rankers(interactions, seed, {name})
    return ranker


def user_item_matrix(train_interactions: pl.DataFrame) -> tuple[sparse.csr_array, dict[str, int]]:
    """The binary user × item matrix [U, I] and item_id → column, columns in order of item id."""
    pairs = train_interactions.select("user_id", "item_id").unique()
    index = {item: i for i, item in enumerate(pairs["item_id"].unique().sort().to_list())}
    users = {user: i for i, user in enumerate(pairs["user_id"].unique().sort().to_list())}
    rows = [users[u] for u in pairs["user_id"].to_list()]
    columns = [index[i] for i in pairs["item_id"].to_list()]
    shape = (len(users), len(index))
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape), index


def _score_by_rows(
    left: sparse.csr_array,
    right: sparse.csr_array,
    anchors: Sequence[Sequence[int]],
    examples: Sequence[RankingExample],
    index: dict[str, int],
) -> NDArray[np.float64]:
    """Scores [B, C] = (Σ over the anchors of row b of left[anchor] @ right)[candidates of row b].

    `left` is [I, J], `right` [J, I]; a candidate outside `index` scores 0, an empty place -inf.
    """
    codes = pad_codes([e.candidates for e in examples], index)
    scores = np.zeros(codes.shape)
    for rows in _chunks(len(examples), len(index)):
        flat = [anchor for row in anchors[rows] for anchor in row]
        ends = np.cumsum([0, *(len(row) for row in anchors[rows])])
        picked = sparse.csr_array((np.ones(len(flat)), flat, ends), shape=(len(ends) - 1, left.shape[0]))
        sums = (picked @ left @ right).toarray()
        known = np.hstack([sums, np.zeros((len(sums), 1))])
        scores[rows] = np.take_along_axis(known, np.where(codes[rows] < 0, len(index), codes[rows]), axis=1)
    return np.where(codes < 0, -np.inf, scores)


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


def _chunks(n: int, width: int) -> Iterator[slice]:
    """Slices that cover 0..n, short enough that [slice, width] fits the budget."""
    step = max(1, _CELLS_AT_A_TIME // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
