"""Title TF-IDF against a twin of dictionaries."""

import math
import re
import tracemalloc
from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers import TitleTfidfRanker
from prefrec.rankers.words import tfidf, tfidf_svd

WORDS = ["Alien", "alien", "Heat", "the", "3", "É", "été", "x-ray", "2001", "Heat,"]
TITLES = st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), min_size=1, max_size=7)


def slow_vector(title: str, titles: list[str]) -> dict[str, float]:
    words = [set(re.findall(r"\b\w\w+\b", t.lower())) for t in titles]
    counts = Counter(re.findall(r"\b\w\w+\b", title.lower()))
    seen = {w: 1 + sum(w in of for of in words) for w in counts}
    vector = {w: n * (math.log((1 + len(titles)) / seen[w]) + 1) for w, n in counts.items()}
    length = math.sqrt(sum(v * v for v in vector.values()))
    return {w: v / length for w, v in vector.items()}


@given(TITLES, st.lists(st.integers(0, 8), max_size=4), st.sampled_from([1.0, 3.0]))
def test_scores_equal_their_slow_twin(titles, history, half_life):
    vectors = {f"i{n}": slow_vector(t, titles) for n, t in enumerate(titles)}
    asked = tuple(f"i{n}" for n in history)  # some are not in the catalogue
    candidates = (*vectors, "unknown")
    example = RankingExample("u", asked, candidates, "i0")
    catalogue = Catalogue(pl.DataFrame({"item_id": [*vectors], "title": titles}))
    (scores,) = TitleTfidfRanker.fit(catalogue, half_life=half_life).score([example])
    history = [(2 ** (-age / half_life), vectors.get(i, {})) for age, i in enumerate(reversed(asked))]

    def slow_score(c: str) -> float:
        return sum(w * v.get(word, 0.0) * of for w, v in history for word, of in vectors.get(c, {}).items())

    want = [slow_score(c) for c in candidates]
    np.testing.assert_allclose(scores, want, atol=1e-12)


def test_a_long_word_does_not_lengthen_the_others():
    """Text without spaces is one word. An array of strings would hold 60 MB here."""
    titles = [f"word{n} and{n}" for n in range(1500)] + ["é" * 5000]
    tracemalloc.start()
    try:
        vectors = tfidf(titles)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert vectors.shape == (1501, 3001)
    assert peak < 10e6


def test_fewer_dimensions_are_the_exact_svd_up_to_signs():
    """Products of vectors are those of the best approximation of this rank."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"word{n}" for n in range(40)], 4)) for _ in range(90)]
    left, sizes, right = np.linalg.svd(tfidf(texts).toarray(), full_matrices=False)
    found = tfidf_svd(texts, 20)
    assert found.shape == (90, 20)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), sizes[:20], rtol=2e-3)
    best = (left[:, :20] * sizes[:20]) @ right[:20]
    np.testing.assert_allclose(found @ found.T, best @ best.T, atol=0.05)
    assert (found[np.abs(found).argmax(axis=0), np.arange(20)] > 0).all()
    np.testing.assert_array_equal(found, tfidf_svd(texts, 20))


def test_equal_texts_have_equal_vectors_and_few_words_few_dimensions():
    texts = ["Red Alien", "Blue Alien", "Red Alien", "", "Blue"]
    found = tfidf_svd(texts, 256)
    assert found.shape == (5, 3)
    np.testing.assert_array_equal(found[0], found[2])
    assert not found[3].any()
    words = tfidf(texts).toarray()
    np.testing.assert_allclose(found @ found.T, words @ words.T, atol=1e-6)
