"""Related items: what is bought beside an item, and what is like it, against slow twins."""

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from drawn_towers import tower_of
from prefrec.data import Catalogue, PreparedData, Query
from prefrec.errors import DataError
from prefrec.rankers.baselines import ItemKNNRanker, PopularityRanker, TitleTfidfRanker
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.recommend.questions import Selection
from prefrec.recommend.related import VectorSimilarity, related_by_data, related_by_ranker, related_items
from prefrec.recommend.rules import Rules

ITEMS = [f"i{n}" for n in range(12)]
CATALOGUE = Catalogue(
    pl.DataFrame({"item_id": [*ITEMS, "new"], "title": [*(f"Word{n % 3} Title{n}" for n in range(12)), "Word1"]})
)
RNG = np.random.default_rng(1)
LOG = make_log([(f"u{u}", ITEMS[i], n) for u in range(25) for n, i in enumerate(RNG.permutation(12)[:5])])


def _scores(ranker, *history):
    return ranker.score([Query(history, tuple(CATALOGUE.ids))])[0]


@pytest.mark.parametrize("item", ["i4", "new", "nothing"])
def test_vectors_are_compared_by_their_cosine(item):
    vectors = RNG.normal(size=(13, 3))
    tower = tower_of(CATALOGUE.ids, vectors)
    by = related_by_ranker("similar", tower)
    assert by.name == "item vectors of tower"
    own = vectors[CATALOGUE.index[item]] if item in CATALOGUE.index else np.zeros(3)
    slow = [own @ v / max(1e-12, np.linalg.norm(own) * np.linalg.norm(v)) for v in vectors]
    np.testing.assert_allclose(_scores(by, "i3", item), slow, atol=1e-6)


def test_counts_know_what_is_also_bought():
    ease = EASERanker.fit(LOG)
    assert related_by_ranker("also_bought", ease) is ease
    best = related_items(ease, Selection(CATALOGUE, Rules(), 3).question(["i4"], ["i4"]))
    row = {item: ease.weights[ease.index["i4"], ease.index[item]] for item in ITEMS}
    assert best.item_ids == sorted((i for i in ITEMS if row[i] > 0), key=row.get, reverse=True)[:3]
    assert related_by_ranker("similar", ease) is None
    assert related_by_ranker("also_bought", PopularityRanker.fit(LOG)) is None
    assert related_by_ranker("also_bought", TransitionGraphRanker.fit(LOG, CATALOGUE)) is None
    assert related_by_ranker("also_bought", BuyAgainRanker.fit()) is None  # it would find the item alone


def test_titles_know_what_is_similar():
    words = TitleTfidfRanker.fit(CATALOGUE)
    tower = tower_of(CATALOGUE.ids, np.eye(13))
    assert related_by_ranker("similar", words) is words
    assert [related_by_ranker("also_bought", ranker) for ranker in (words, tower)] == [None, None]
    for ranker in (PopularityRanker.fit(LOG), BuyAgainRanker.fit()):
        assert related_by_ranker("similar", ranker) is None


def _data(catalogue, log):
    return PreparedData(catalogue, [], [], [], log, {})


def test_data_answer_for_rankers_without_a_notion():
    data = _data(CATALOGUE, LOG)
    also_bought, similar = (related_by_data(relation, data) for relation in ("also_bought", "similar"))
    assert (also_bought.name, similar.name) == ("item-kNN", "title TF-IDF")
    np.testing.assert_allclose(_scores(also_bought, "i4"), _scores(ItemKNNRanker.fit(LOG), "i4"))
    new = related_items(similar, Selection(CATALOGUE, Rules(), 13).question(["new"], ["new"]))
    assert {*new.item_ids} == {"i1", "i4", "i7", "i10"}  # those with its word, and none of the others
    with pytest.raises(DataError, match="only a log tells what customers also bought"):
        related_by_data("also_bought", _data(CATALOGUE, LOG.clear()))


def test_complements_and_substitutes_are_two_answers():
    """Who buys a shampoo buys the comb of its brand, and never a second shampoo."""
    kinds, brands = ("Shampoo", "Comb", "Soap"), range(10)
    names = [f"{kind} Brand{n}" for kind in kinds for n in brands]
    catalogue = Catalogue(
        pl.DataFrame({"item_id": names, "title": [f"{n.split()[0]} {i}" for i, n in enumerate(names)]})
    )
    bought = [
        (f"u{u}", kind, n) for u in range(60) for kind, n in (("Shampoo", u % 10), ("Comb", u % 10), ("Soap", u % 7))
    ]
    log = make_log([(user, f"{kind} Brand{n}", time) for time, (user, kind, n) in enumerate(bought)])
    found = {}
    for relation in ("also_bought", "similar"):
        by = related_by_data(relation, _data(catalogue, log))
        for n in brands:
            item = f"Shampoo Brand{n}"
            asked = Selection(catalogue, Rules(), 5).question([item], [item])
            found[relation, n] = related_items(by, asked).item_ids
    assert [found["also_bought", n][0] for n in brands] == [f"Comb Brand{n}" for n in brands]
    assert not any(item.startswith("Shampoo") for n in brands for item in found["also_bought", n])
    assert all(item.startswith("Shampoo") for n in brands for item in found["similar", n])
    assert all(len(found["similar", n]) == 5 for n in brands)


def test_an_item_without_a_vector_is_similar_to_none():
    by = VectorSimilarity("by", ["a", "b"], np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert by.score([Query(("a",), ("a", "b"))]).tolist() == [[0.0, 0.0]]
