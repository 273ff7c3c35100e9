"""TF-IDF vectors of titles, and the same in fewer dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

TFIDF = "tfidf"
"""Name of TF-IDF vectors in recipes, in place of an encoder's."""
_SPARE, _ROUNDS = 10, 4
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


def tfidf_svd(texts: Sequence[str], size: int) -> NDArray[np.float32]:
    """Return TF-IDF vectors [T, D] on their D first singular directions, with D ≤ `size`.

    The SVD is randomised: power iterations from a Gaussian sketch of fixed seed (Halko, Martinsson and Tropp 2011,
    algorithms 4.4 and 5.1). So it takes time and memory in proportion to `size`, not to the number of words. The
    same texts give the same vectors, up to rounding of the processor, and equal texts equal vectors. Of the two signs
    of a direction it is the one with which the largest entry is positive.
    """
    words = tfidf(texts)
    kept, width = min(size, *words.shape), min(size + _SPARE, *words.shape)
    basis = np.linalg.qr(words @ np.random.default_rng(0).standard_normal((words.shape[1], width)))[0]
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(words @ (words.T @ basis))[0]
    onto, triangle = np.linalg.qr(words.T @ basis)
    directions = onto @ np.linalg.svd(triangle.T)[2][:kept].T
    # A sparse product adds up each row alone, so that equal texts stay equal.
    vectors = words @ directions
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(kept)]
    return (vectors * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)
