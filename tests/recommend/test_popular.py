"""What is popular now, against counts by hand: recent interactions, then all, then the catalogue's order."""

import polars as pl

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.rankers.item_features import DAY
from prefrec.recommend.popular import Popular

CATALOGUE = Catalogue(pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]}))
START = 1_700_000_000


def _popular(log):
    return Popular.of(PreparedData(CATALOGUE, [], [], [], make_log(log)))


def test_recent_interactions_count_before_older_ones():
    old = [(f"u{n}", "a", START) for n in range(5)]
    new = [("u0", "c", START + 100 * DAY), ("u1", "c", START + 101 * DAY), ("u1", "b", START + 102 * DAY)]
    popular = _popular([*old, *new])
    assert popular.name == "popularity of 90 days"
    assert popular.ids == ["c", "b", "a", "d"]
    assert popular.counts.tolist() == [2, 1, 0, 0]
    assert [popular.position[item] for item in popular.ids] == [0, 1, 2, 3]


def test_without_dates_all_interactions_count():
    popular = _popular([("u0", "d", 1), ("u1", "d", 2), ("u1", "b", 99_000_000)])
    assert (popular.name, popular.ids) == ("popularity", ["d", "b", "a", "c"])
    assert popular.counts.tolist() == [2, 1, 0, 0]


def test_interactions_before_test_examples_count():
    """Those of validation targets, too; a test target does not."""
    log = [(user, item, START + n * DAY) for user in ("u0", "u1") for n, item in enumerate("ab")]
    held = make_log([(user, item, START + n * DAY) for user in ("u0", "u1") for n, item in ((8, "c"), (9, "d"))])
    validation = [RankingExample(user, ("a", "b"), ("c", "d"), "c") for user in ("u0", "u1")]
    test = [RankingExample(user, ("a", "b", "c"), ("c", "d"), "d") for user in ("u0", "u1")]
    popular = Popular.of(PreparedData(CATALOGUE, [], validation, test, make_log(log), held_out_interactions=held))
    assert [*zip(popular.ids, popular.counts.tolist(), strict=True)] == [("a", 2), ("b", 2), ("c", 2), ("d", 0)]


def test_an_empty_log_has_no_popularity():
    assert _popular([]) is None
