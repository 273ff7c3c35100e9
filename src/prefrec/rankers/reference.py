"""The reference rows of every table: rankers without a neural model.

They learn from training interactions (a frame `user_id, item_id, timestamp`), and items outside them score 0. Title
TF-IDF learns from titles instead. Window co-occurrence is in `window`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.base import Ranker
from prefrec.rankers.rows import blocks, history_matrix, pad_scores, score_by_rows, user_item_matrix
from prefrec.rankers.window import WindowCooccurrenceRanker

_WORD = re.compile(r"\b\w\w+\b")


@dataclass(eq=False)
class RandomRanker:
    """A uniform score in [0, 1) from a hash of (seed, user, history, candidate)."""

    seed: int = 0
    name: str = "random"

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        return pad_scores([self._row(e) for e in examples])

    def _row(self, example: RankingExample) -> list[float]:
        key = "\x1f".join((str(self.seed), example.user_id, *example.history, ""))
        prefix = blake2b(key.encode(), digest_size=8)
        scores = []
        for candidate in example.candidates:
            digest = prefix.copy()
            digest.update(candidate.encode())
            # The upper 53 bits, as many as a float holds.
            scores.append((int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53)
        return scores


@dataclass(eq=False)
class PopularityRanker:
    """Score of a candidate = number of training users who took it."""

    counts: dict[str, int]
    name: str = "popularity"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Count the distinct users of each item."""
        counts = train_interactions.group_by("item_id").agg(pl.col("user_id").n_unique())
        return cls(dict(counts.iter_rows()))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        return pad_scores([[float(self.counts.get(c, 0)) for c in e.candidates] for e in examples])


@dataclass(eq=False)
class CooccurrenceRanker:
    """Score of a candidate = number of training users who took both it and the last item of the history.

    count(l, c) = (XᵀX)[l, c] with X the binary user × item matrix; an example without history scores 0 everywhere.
    The log of a training user holds the target of the user's row: only held-out rows are measured fairly.
    """

    matrix: sparse.csr_array
    index: dict[str, int]
    name: str = "co-occurrence"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Keep the binary user × item matrix, of which `score` takes the counts."""
        return cls(*user_item_matrix(train_interactions))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
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
        parts = [sparse.csr_array((0, len(index)))]
        for rows in blocks(len(index), len(index)):
            similarity = (items[rows] @ matrix).toarray() / (np.outer(norms[rows], norms) + shrink)
            # An item is not its own neighbour.
            similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop)] = 0.0
            if k < len(index):
                floor = np.partition(similarity, -k, axis=1)[:, -k]
                similarity[similarity < floor[:, None]] = 0.0
            parts.append(sparse.csr_array(similarity))
        return cls(sparse.csr_array(sparse.vstack(parts, format="csr")), index)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        histories = history_matrix([e.history for e in examples], self.index)
        return score_by_rows(histories, [self.similarity.T.tocsr()], examples, self.index)


@dataclass(eq=False)
class TitleTfidfRanker:
    """Score of candidate c = Σ over history items i of 2^(−age_i / half_life) · cos(title of i, title of c).

    Titles are TF-IDF vectors (`tfidf`); age 0 is the newest item of the history. New items are scored like others.
    """

    vectors: sparse.csr_array
    index: dict[str, int]
    half_life: float = 1.0
    name: str = "title TF-IDF"

    @classmethod
    def fit(cls, catalogue: Catalogue, *, half_life: float = 1.0) -> Self:
        """Keep a sparse vector per item; a weight is halved after `half_life` items of the history."""
        vectors = tfidf(list(catalogue.titles.values()))
        return cls(vectors, {item: i for i, item in enumerate(catalogue.titles)}, half_life)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        weights = history_matrix([e.history for e in examples], self.index, self.half_life)
        return score_by_rows(weights, [self.vectors, self.vectors.T.tocsr()], examples, self.index)


_REFERENCES: dict[str, Callable[[pl.DataFrame, Catalogue, int, Sequence[RankingExample]], Ranker]] = {
    RandomRanker.name: lambda log, items, seed, rows: RandomRanker(seed),
    PopularityRanker.name: lambda log, items, seed, rows: PopularityRanker.fit(log),
    CooccurrenceRanker.name: lambda log, items, seed, rows: CooccurrenceRanker.fit(log),
    ItemKNNRanker.name: lambda log, items, seed, rows: ItemKNNRanker.fit(log),
    WindowCooccurrenceRanker.name: lambda log, items, seed, rows: WindowCooccurrenceRanker.fit(log, validation=rows),
    TitleTfidfRanker.name: lambda log, items, seed, rows: TitleTfidfRanker.fit(items),
}
"""Name → function that fits the ranker; in the order of the tables."""


def reference_rankers(
    train_interactions: pl.DataFrame,
    catalogue: Catalogue,
    seed: int = 0,
    names: Collection[str] = tuple(_REFERENCES),
    validation: Sequence[RankingExample] = (),
) -> list[Ranker]:
    """Return the fitted reference rankers of these names, in the order of the tables.

    The seed is that of `random`; `validation` rows choose the settings of `window co-occurrence`, else it has its
    defaults.
    """
    fits = [fit for name, fit in _REFERENCES.items() if name in names]
    return [fit(train_interactions, catalogue, seed, validation) for fit in fits]


def tfidf(texts: Sequence[str]) -> sparse.csr_array:
    """Return TF-IDF vectors [T, W] of length 1, or of length 0 for a text without words.

    They are those of scikit-learn's TfidfVectorizer with its defaults: lower-cased words of two letters or digits and
    more, raw counts, idf = ln((1 + T) / (1 + texts with the word)) + 1.
    """
    words = [_WORD.findall(text.lower()) for text in texts]
    vocabulary, columns = np.unique([w for text in words for w in text], return_inverse=True)
    ends = np.cumsum([0, *map(len, words)])
    counts = sparse.csr_array((np.ones(len(columns)), columns, ends), shape=(len(texts), len(vocabulary)))
    counts.sum_duplicates()
    texts_with = np.bincount(counts.indices, minlength=len(vocabulary))
    weighted = counts @ sparse.diags_array(np.log((1 + len(texts)) / (1 + texts_with)) + 1)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))
    # A text without words stays a row of zeros.
    return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ weighted)
