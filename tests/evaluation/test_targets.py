"""Classes and counts of targets, against counts by hand."""

from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.evaluation.targets import CLASSES, COUNTS, IN_TRAINING, NEW, item_classes, target_classes


@pytest.fixture(scope="module")
def fewer(data) -> PreparedData:
    """The data without two test targets in the training log, one of which is a validation target, once."""
    of_validation, of_test = Counter(e.target for e in data.validation), sorted({e.target for e in data.test})
    gone = [next(item for item in of_test if of_validation[item] == times) for times in (0, 1)]
    return replace(data, train_interactions=data.train_interactions.filter(~pl.col("item_id").is_in(gone)))


@pytest.mark.parametrize(("split", "classes"), [("validation", {IN_TRAINING, NEW}), ("test", {*CLASSES})])
def test_target_classes_equal_counts_by_hand(fewer, split, classes):
    trained = Counter(fewer.train_interactions["item_id"])
    known = trained + Counter(e.target for e in fewer.validation if split == "test")
    found = target_classes(fewer, fewer.split(split), split)
    assert found["item_id"].to_list() == [e.target for e in fewer.split(split)]
    assert {*found["class"]} == classes
    for row in found.iter_rows(named=True):
        item = row["item_id"]
        assert (row["trained"], row["known"]) == (trained[item], known[item])
        assert row["class"] == CLASSES[0 if trained[item] else 1 if known[item] else 2]


def test_item_classes_have_every_item_and_the_group_of_its_count(data):
    log = data.train_interactions
    log = log.filter(~log["item_id"].is_in(data.catalogue.ids[:6]))
    for item, count in zip(data.catalogue.ids[:6], (51, 50, 11, 10, 3, 2), strict=True):
        more = data.train_interactions[:count].with_columns(item_id=pl.lit(item))
        log = log.vstack(more.cast(log.schema).select(log.columns))
    changed = type(data)(data.catalogue, [], [], [], log)
    found = item_classes(changed, "test")
    assert found["item_id"].to_list() == data.catalogue.ids
    assert found["count"].to_list()[:6] == ["more than 50", "11–50", "11–50", "3–10", "3–10", "1–2"]
    for known, group in found.select("known", "count").iter_rows():
        assert group == [name for name, least in COUNTS.items() if known >= least][-1]
