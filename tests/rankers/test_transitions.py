"""The transition graph against a walk by hand."""

import math

import polars as pl

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.transitions import TransitionGraphRanker

TITLES = {"a": "red pen", "b": "blue pen", "c": "red ink", "d": "stapler", "e": "paper", "f": "red pen refill"}
CATALOGUE = Catalogue(pl.DataFrame({"item_id": [*TITLES], "title": [*TITLES.values()]}))


def _log(*sequences: str) -> pl.DataFrame:
    return make_log([(f"u{n}", item, t) for n, items in enumerate(sequences) for t, item in enumerate(items)])


def test_nearer_rings_come_first_and_words_order_a_ring():
    ranker = TransitionGraphRanker.fit(_log("ab", "ab", "ad", "be"), CATALOGUE)
    row = RankingExample("u", ("a",), ("f", "e", "d", "b", "c"), "b")
    scores = dict(zip(row.candidates, ranker.score([row])[0], strict=True))
    # b and d follow a; e follows b; f and c have words of a alone.
    assert sorted(scores, key=scores.__getitem__, reverse=True) == ["b", "d", "e", "f", "c"]
    assert math.isclose(scores["d"], 200 + 0.5 * math.log(2))


def test_the_last_two_items_count_and_users_are_not_joined():
    ranker = TransitionGraphRanker.fit(_log("ab", "cd", "ef"), CATALOGUE)
    row = RankingExample("u", ("e", "a", "c"), ("b", "d", "e", "f"), "b")
    b, d, e, f = ranker.score([row])[0]
    assert min(b, d) > 200  # they follow a and c
    assert max(e, f) < 100  # e is too old, and d is no neighbour of e
