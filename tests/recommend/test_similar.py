"""Similar items: by the notion of a ranker, else by the log and titles, against slow twins."""

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.baselines import ItemKNNRanker, PopularityRanker, TitleTfidfRanker
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.recommend.questions import Selection, similar_items
from prefrec.recommend.rules import Rules
from prefrec.recommend.similar import VectorSimilarity, log_similarity, own_similarity
from prefrec.towers.title_tower import TitleTowerRanker

ITEMS = [f"i{n}" for n in range(12)]
CATALOGUE = Catalogue(
    pl.DataFrame({"item_id": [*ITEMS, "new"], "title": [*(f"Word{n % 3} Title{n}" for n in range(12)), "Word1"]})
)
RNG = np.random.default_rng(1)
LOG = make_log([(f"u{u}", ITEMS[i], n) for u in range(25) for n, i in enumerate(RNG.permutation(12)[:5])])


def _scores(ranker, item):
    return ranker.score([RankingExample("-", ("i3", item), tuple(CATALOGUE.ids), item)])[0]


@pytest.mark.parametrize("item", ["i4", "new", "nothing"])
def test_vectors_are_compared_by_their_cosine(item):
    vectors = RNG.normal(size=(13, 3))
    tower = TitleTowerRanker("tower", CATALOGUE.ids, vectors, np.ones(13), np.eye(3), np.ones(2))
    by = own_similarity(tower)
    assert by.name == "item vectors of tower"
    own = vectors[CATALOGUE.index[item]] if item in CATALOGUE.index else np.zeros(3)
    slow = [own @ v / max(1e-12, np.linalg.norm(own) * np.linalg.norm(v)) for v in vectors]
    np.testing.assert_allclose(_scores(by, item), slow, atol=1e-12)


def test_counts_have_the_notion_of_their_scores():
    ease = EASERanker.fit(LOG)
    assert own_similarity(ease) is ease
    best = similar_items(ease, Selection(CATALOGUE, Rules(), 3).question(["i4"], ["i4"]))
    row = {item: ease.weights[ease.index["i4"], ease.index[item]] for item in ITEMS}
    assert best.item_ids == sorted((i for i in ITEMS if row[i] > 0), key=row.get, reverse=True)[:3]
    assert own_similarity(PopularityRanker.fit(LOG)) is None
    assert own_similarity(TransitionGraphRanker.fit(LOG, CATALOGUE)) is None
    assert own_similarity(BuyAgainRanker.fit()) is None  # it would find the item alone


def test_others_add_the_cosines_of_the_log_and_of_titles():
    by = log_similarity(LOG, CATALOGUE)
    assert by.name == "item-kNN + title TF-IDF"
    words, knn = TitleTfidfRanker.fit(CATALOGUE), ItemKNNRanker.fit(LOG)
    examples = [RankingExample("-", ("i4",), tuple(CATALOGUE.ids), "i4")]
    np.testing.assert_allclose(_scores(by, "i4"), (knn.score(examples) + words.score(examples))[0])
    new = similar_items(by, Selection(CATALOGUE, Rules(), 13).question(["new"], ["new"]))
    assert {*new.item_ids} == {"i1", "i4", "i7", "i10"}  # those with its word, and none of the others
    assert log_similarity(LOG.clear(), CATALOGUE).name == "title TF-IDF"


def test_an_item_without_a_vector_is_similar_to_none():
    by = VectorSimilarity("by", ["a", "b"], np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert by.score([RankingExample("-", ("a",), ("a", "b"), "a")]).tolist() == [[0.0, 0.0]]
