"""The diagnosis of a data set, against numbers by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import diagnosis
from prefrec.evaluation.diagnosis import Diagnosis, diagnose

TITLES = ["Heat", "Heat", "Emma", "Emma", "Alien", "Alien"]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": [*"abcdef"], "title": TITLES}))
LOG = make_log(
    [(user, item, n) for user, items in {"u": "abc", "v": "ab", "w": "ac"}.items() for n, item in enumerate(items)]
)
ROWS = [
    RankingExample("k", ("b", "c"), ("a", "b", "d"), "a"),
    RankingExample("l", ("b", "c"), ("c", "a", "b"), "a"),
    RankingExample("m", ("c",), ("d", "a", "e"), "d"),
    RankingExample("n", ("c",), ("f", "b", "c"), "b"),
]


class Reader:
    """Ranks the target first after histories of `least` items and more, and else last of three."""

    def __init__(self, name: str, least: int) -> None:
        self.name, self.least = name, least

    def score(self, examples: Sequence[RankingExample]) -> np.ndarray:
        signs = [1.0 if len(e.history) >= self.least else -1.0 for e in examples]
        return np.array([[s * (i == e.target) for i in e.candidates] for s, e in zip(signs, examples, strict=True)])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    monkeypatch.setattr(diagnosis, "TOP", 1)
    return diagnose(ROWS, CATALOGUE, LOG, [Reader("blind", 3), Reader("taste", 2)])


def test_targets_and_classes_equal_counts_by_hand(found):
    """The log has a, b and c; a is the most frequent target."""
    assert (found.n, found.targets, found.top_share) == (4, 3, 2 / 4)
    assert (found.new_rows, found.new_targets) == (1 / 4, 1)
    assert (found.new_negatives, found.new_items) == (3 / 8, 3 / 6)


def test_successors_equal_counts_by_hand(found):
    """Twice b after a, which have one title; once c after a, and c after b."""
    assert found.successors == 3 / 2
    assert found.alike == pytest.approx(2 / 4)
    assert found.alike_random == pytest.approx(1 / 3, abs=0.02)
    empty = diagnose(ROWS, CATALOGUE, LOG.clear(), [Reader("blind", 3)])
    assert (empty.successors, empty.alike, empty.new_items) == (0, 0, 1)


def test_the_gain_of_the_history_is_that_of_the_best_rule(found):
    """With the last item alone, it ranks two of four targets third instead of first."""
    gain = found.history_gain
    assert found.history_rule == "taste"
    assert (gain.mean, gain.n, gain.users) == (pytest.approx((1 - 1 / np.log2(4)) * 2 / 4), 4, 4)
    assert "adds +0.250 [no interval] NDCG@10" in found.sentences[-1]
    many = [replace(row, user_id=f"{row.user_id}{n}") for n in range(5) for row in ROWS]
    found = diagnose(many, CATALOGUE, LOG, [Reader("blind", 3), Reader("taste", 2)])
    gain = found.history_gain
    assert gain.low < gain.mean < gain.high
    assert f"adds +0.250 [{gain.low:.3f}, {gain.high:.3f}] NDCG@10" in found.sentences[-1]


@pytest.mark.parametrize(
    ("targets", "negatives", "differ"), [(0.25, 0.125, False), (0.25, 0.12, True), (0.01, 0, False), (0.011, 0, True)]
)
def test_classes_differ_if_new_items_are_twice_as_common_among_targets(found, targets, negatives, differ):
    assert replace(found, new_rows=targets, new_negatives=negatives).classes_differ is differ
