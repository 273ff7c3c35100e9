"""TF-IDF vectors of titles."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

TFIDF = "tfidf"
"""Name of TF-IDF vectors in recipes, in place of an encoder's."""
_WORD = re.compile(r"\b\w\w+\b")


def tfidf(texts: Sequence[str]) -> sparse.csr_array:
    """Return TF-IDF vectors [T, W] of T texts, of length 1, or 0 for a text without words.

    They equal those of scikit-learn's TfidfVectorizer with its defaults: lower-cased words of at least two letters or
    digits, raw counts, idf = ln((1 + T) / (1 + texts with the word)) + 1.
    """
    words = [_WORD.findall(text.lower()) for text in texts]
    found = [w for text in words for w in text]
    # An array of strings would give every word the room of the longest one.
    vocabulary = {word: column for column, word in enumerate(sorted(set(found)))}
    columns = np.fromiter(map(vocabulary.__getitem__, found), np.int64, len(found))
    ends = np.cumsum([0, *map(len, words)])
    counts = sparse.csr_array((np.ones(len(columns)), columns, ends), shape=(len(texts), len(vocabulary)))
    counts.sum_duplicates()
    texts_with = np.bincount(counts.indices, minlength=len(vocabulary))
    weighted = counts @ sparse.diags_array(np.log((1 + len(texts)) / (1 + texts_with)) + 1)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))
    # A text without words stays a row of zeros.
    return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ weighted)
