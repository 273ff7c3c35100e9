"""Repeats and cores."""

import polars as pl

from prefrec.data.splits import core, first_only

LOG = pl.DataFrame(
    [("a", "x", 3, 1.0), ("a", "x", 1, 5.0), ("a", "y", 2, 4.0), ("b", "x", 2, 3.0), ("c", "z", 1, 2.0)],
    schema=["user_id", "item_id", "timestamp", "rating"],
    orient="row",
)


def test_first_only_keeps_the_earliest() -> None:
    kept = first_only(LOG)
    assert len(kept) == 4
    assert kept.filter(user_id="a", item_id="x")["timestamp"].to_list() == [1]


def test_the_order_of_lines_decides_between_no_two_ratings() -> None:
    log = pl.DataFrame({"user_id": "a", "item_id": "x", "timestamp": 1, "rating": [None, 5.0, 2.0]})
    for lines in (log, log.reverse()):
        assert first_only(lines)["rating"].to_list() == [2.0]


def test_of_lines_that_differ_in_impressions_alone_the_first_stays() -> None:
    lines = [(f"u{n % 40}", "x", 1, 4.0, [f"i{9_999 - n}"]) for n in range(4_000)]
    log = pl.DataFrame(lines, schema=["user_id", "item_id", "timestamp", "rating", "impressions"], orient="row")
    assert dict(first_only(log).select("user_id", "impressions").iter_rows()) == {u: i for u, *_, i in lines[:40]}


def test_core_single_pass_is_items_first_and_does_not_repeat() -> None:
    log = pl.DataFrame({"user_id": ["a", "a", "b", "b", "c"], "item_id": ["x", "y", "x", "z", "y"]})
    assert core(log, 2, 2, iterative=False).rows() == [("a", "x"), ("a", "y")]
    assert core(log, 2, 2).is_empty()
    assert core(log, 1, 1).equals(log)
