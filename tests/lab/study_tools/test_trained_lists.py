"""Training lists hold trained items that the user never takes; what can stay stays in its place."""

import polars as pl
import pytest

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec_lab.study_tools.trained_lists import trained_items_only

IDS = [f"i{n}" for n in range(40)]
OLD = IDS[:30]


@pytest.fixture
def data():
    """Ten users who took i0 … i9 in training and two more each later; items from i30 on are new."""
    log = [(f"u{u}", OLD[n], n) for u in range(10) for n in range(10)] + [("other", i, 0) for i in OLD]
    frame = pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row")
    listed = {f"i{u}": ("i31", "i12", f"i{u}", "i35", "i38") for u in range(2, 10)}
    train = [RankingExample(f"u{i[1:]}", ("i0", "i1"), row, i) for i, row in listed.items()]
    train.append(RankingExample("u0", ("i1",), ("i20", "i21", "i0"), "i0"))
    later = [RankingExample(f"u{u}", (f"i{13 + u}",), ("i39", "i25"), "i25") for u in range(10)]
    catalogue = Catalogue(pl.DataFrame({"item_id": IDS, "title": [i.upper() for i in IDS]}))
    return PreparedData(catalogue, train, [], later, frame)


def test_new_items_give_way_and_the_rest_stays(data):
    rows = trained_items_only(data.train, data, data.train_interactions, 0)
    assert rows[-1] == data.train[-1]
    filled = set()
    for before, after in zip(data.train[:-1], rows[:-1], strict=True):
        assert (after.user_id, after.history, after.target) == (before.user_id, before.history, before.target)
        assert (after.candidates[1:3], len(set(after.candidates))) == (before.candidates[1:3], 5)
        new = {after.candidates[i] for i in (0, 3, 4)}
        assert new <= set(OLD[10:]) - {f"i{13 + int(after.user_id[1:])}", "i25"}  # what is never taken
        filled |= new
    assert len(filled) > 6
    assert trained_items_only(data.train, data, data.train_interactions, 0) == rows
    assert trained_items_only(data.train, data, data.train_interactions, 1) != rows


def test_too_few_items_of_training(data):
    few = data.train_interactions.filter(pl.col("item_id").is_in(["i2", "i3", "i12"]))
    with pytest.raises(DataError, match="user 'u2' has only"):
        trained_items_only(data.train[:1], data, few, 0)
