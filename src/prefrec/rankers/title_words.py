"""Title TF-IDF: items whose titles share rare words with those of the history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.rows import history_matrix, score_by_rows

_WORD = re.compile(r"\b\w\w+\b")


@dataclass(eq=False)
class TitleTfidfRanker:
    """Score of candidate c = Σ over history items i of 2^(−age_i / half_life) · cos(title of i, title of c).

    Titles are vectors of TF-IDF (`tfidf`); age 0 is the newest item of the history. It knows no interactions, so new
    items are scored as all others are.
    """

    vectors: sparse.csr_array
    index: dict[str, int]
    half_life: float = 1.0
    name: str = "title TF-IDF"

    @classmethod
    def fit(cls, catalogue: Catalogue, *, half_life: float = 1.0) -> Self:
        """Keep a sparse vector per item.

        Args:
            catalogue: all items.
            half_life: items of the history after which a weight is halved.
        """
        vectors = tfidf(list(catalogue.titles.values()))
        return cls(vectors, {item: i for i, item in enumerate(catalogue.titles)}, half_life)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C]: weighted sums of cosines."""
        weights = history_matrix([e.history for e in examples], self.index, self.half_life)
        return score_by_rows(weights, [self.vectors, self.vectors.T.tocsr()], examples, self.index)


def tfidf(texts: Sequence[str]) -> sparse.csr_array:
    """Return TF-IDF vectors [T, W] of length 1; of length 0 where a text has no word.

    The defaults of scikit-learn's TfidfVectorizer: lower-cased words of two letters or digits and more, raw counts,
    idf = ln((1 + T) / (1 + texts with the word)) + 1.
    """
    words = [_WORD.findall(text.lower()) for text in texts]
    column = {word: n for n, word in enumerate(sorted({w for of in words for w in of}))}
    ends = np.cumsum([0, *(len(of) for of in words)])
    columns = [column[w] for of in words for w in of]
    counts = sparse.csr_array((np.ones(len(columns)), columns, ends), shape=(len(texts), len(column)))
    counts.sum_duplicates()
    texts_with = np.bincount(counts.indices, minlength=len(column))
    weighted = counts @ sparse.diags_array(np.log((1 + len(texts)) / (1 + texts_with)) + 1)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))
    return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ weighted)
