"""Coverage, novelty and diversity, against sums over lists by hand."""

import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest

from prefrec.data import Catalogue
from prefrec.evaluation.beyond import beyond_accuracy
from prefrec.rankers.words import tfidf

TITLES = {"a": "red fox", "b": "red dog", "c": "blue cat", "d": "green owl"}
LOG = pl.DataFrame({"user_id": ["u", "u", "v", "w", "x"], "item_id": ["a", "b", "a", "a", "c"]})


def test_lists_are_covered_novel_and_diverse():
    catalogue = Catalogue(pl.DataFrame({"item_id": [*TITLES], "title": [*TITLES.values()]}))
    lists = {"one": [("abd", [3.0, 2.0, 1.0]), ("bca", [3.0, 2.0, 1.0])], "two": [("dcb", [0.0, 0.0, 0.0])]}
    rows = [(name, list(items), scores) for name, own in lists.items() for items, scores in own]
    frame = pl.DataFrame(rows, schema=["ranker", "candidates", "scores"], orient="row")
    found = beyond_accuracy(frame, LOG, catalogue, k=2)
    best = {"one": ["ab", "bc"], "two": ["dc"]}
    taken = {"a": 3, "b": 1, "c": 1, "d": 1}  # nobody took d
    for name, own in best.items():
        shown = [item for items in own for item in items]
        assert found[name]["coverage@2"] == pytest.approx(len({*shown}) / 4)
        assert found[name]["novelty@2"] == pytest.approx(sum(-math.log2(taken[i] / 4) for i in shown) / len(shown))
    assert found["two"]["diversity@2"] == pytest.approx(1)  # no word in common
    alike = [pair for items in best["one"] for pair in combinations(items, 2) if {*pair} == {"a", "b"}]
    assert len(alike) == 1
    assert 0.5 < found["one"]["diversity@2"] < 1  # "red" is in both titles of one of two lists


def test_diversity_is_the_mean_over_pairs_of_a_list():
    rng = np.random.default_rng(0)
    titles = {str(n): " ".join(rng.choice(["red", "blue", "fox", "dog", "owl"], n % 4)) for n in range(20)}
    catalogue = Catalogue(pl.DataFrame({"item_id": [*titles], "title": [*titles.values()]}))
    lists = [rng.permutation([*titles])[: 1 + n % 6].tolist() for n in range(30)]
    frame = pl.DataFrame({"ranker": ["one"] * 30, "candidates": lists, "scores": [[0.0] * len(a) for a in lists]})
    vectors = tfidf([*titles.values()]).toarray()
    apart = [
        np.mean([1 - vectors[int(a)] @ vectors[int(b)] for a, b in combinations(items, 2)])
        for items in lists
        if len(items) > 1  # a list of one item has no pair
    ]
    found = beyond_accuracy(frame, LOG, catalogue)["one"]["diversity@10"]
    assert found == pytest.approx(np.mean(apart))
