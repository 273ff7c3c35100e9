"""Places for new items in the answers of a run: what orders them, and where the rule comes from."""

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, Query
from prefrec.rankers.baselines import ItemKNNRanker, TitleTfidfRanker
from prefrec.recommend.new_items import ByTitleIfEqual, NewItems
from prefrec.recommend.questions import Selection, answer_all
from prefrec.recommend.rules import Rules

TITLES = {
    "a": "red tent",
    "b": "tent pegs",
    "c": "blue lamp",
    "n1": "red lamp",
    "n2": "large tent",
    "n3": "small lamp",
}
CATALOGUE = Catalogue(pl.DataFrame({"item_id": [*TITLES], "title": [*TITLES.values()]}))
ROWS = [(user, item, n) for user in ("u", "v", "w") for n, item in enumerate("abc")]
DATA = PreparedData(CATALOGUE, [], [], [], make_log(ROWS), {})


def test_new_items_are_those_without_interactions_before_test_examples():
    later = PreparedData(CATALOGUE, [], [], [], make_log(ROWS), {}, None, make_log([("u", "n1", 9)]))
    assert NewItems(DATA).ids == {"n1", "n2", "n3"}
    assert NewItems(later).ids == {"n1", "n2", "n3"} - {*later.known_interactions("test")["item_id"]}


def test_counts_put_new_items_in_the_order_of_their_titles():
    ranker = ItemKNNRanker.fit(DATA.train_interactions)
    selection = Selection(CATALOGUE, Rules(new_every=2, exclude_seen=False), 4, new=NewItems(DATA))
    after_tent, after_lamp = answer_all(ranker, [selection.question([item], []) for item in ("b", "c")])
    new_after_tent, new_after_lamp = (
        [item for item in answer.item_ids if item in NewItems(DATA).ids] for answer in (after_tent, after_lamp)
    )
    assert after_tent.item_ids[1] == new_after_tent[0] == "n2"  # it shares the word tent
    assert {*new_after_lamp[:2]} == {"n1", "n3"}
    titles = TitleTfidfRanker.fit(CATALOGUE).score([Query(("b",), ("n2",))])
    np.testing.assert_allclose(after_tent.logps[1], titles[0, 0], rtol=1e-5)


class Fixed:
    """Gives candidates these scores, whatever the history."""

    name = "fixed"

    def __init__(self, scores):
        self.scores = np.array(scores, dtype=float)

    def score(self, examples):
        return self.scores[: len(examples)]


@pytest.mark.parametrize("same", [[0.0, 0.0, 0.0], [-np.inf] * 3, [2.5, 2.5, -np.inf]])
def test_titles_decide_where_a_ranker_gives_all_new_items_the_same(same):
    examples = [Query(("b",), ("n1", "n2", "n3"))] * 2
    by_title = TitleTfidfRanker.fit(CATALOGUE)
    scores = ByTitleIfEqual(Fixed([same, [1.0, 3.0, 2.0]]), by_title).score(examples)
    np.testing.assert_array_equal(scores[0], by_title.score(examples)[0])
    np.testing.assert_array_equal(scores[1], [1.0, 3.0, 2.0])
