"""Queries, alone and with shared candidates, and examples, which are queries with a target."""

import pickle
from dataclasses import replace

import pytest

from prefrec.data import Candidates, Queries, Query, RankingExample, query

QUERY = Query(("a", "b"), ("c", "d"), 7, (1, 2), "u")
EXAMPLE = RankingExample("u", ("a", "b"), ("c", "d"), "d", 7, (1, 2))


def test_a_query_has_no_target_and_need_not_have_a_user():
    assert not hasattr(QUERY, "target")
    assert Query(("a",), ("c",)).user_id is None


def test_times_do_not_count_when_queries_are_compared():
    assert replace(QUERY, time=None, history_times=()) == QUERY
    assert replace(QUERY, user_id=None) != QUERY
    assert replace(EXAMPLE, target="c") != EXAMPLE


def test_an_example_is_a_query():
    assert isinstance(EXAMPLE, Query)
    assert (EXAMPLE.user_id, EXAMPLE.target, EXAMPLE.target_index) == ("u", "d", 1)
    assert replace(EXAMPLE, candidates=("d",)).target == "d"
    assert pickle.loads(pickle.dumps(EXAMPLE)) == EXAMPLE


def test_about_other_candidates_an_example_is_a_query_without_its_target():
    other = EXAMPLE.among(("x",))
    assert type(other) is Query
    assert other == Query(("a", "b"), ("x",), user_id="u")
    assert (other.time, other.history_times) == (7, (1, 2))


def test_codes_of_candidates_are_looked_up_once_for_each_index():
    items = Candidates(["b", "a", "x"])
    index, other = {"a": 0, "b": 1}, {"x": 0}
    assert items.codes(index).tolist() == [1, 0, 2]
    assert items.codes(index) is items.codes(index)
    assert items.codes(other).tolist() == [1, 1, 0]
    assert items.codes(dict(index)) is not items.codes(index)  # another index may grow
    assert items.places == {"b": 0, "a": 1, "x": 2}
    assert ([*items], items[1], items[1:], len(items)) == (["b", "a", "x"], "a", ("a", "x"), 3)


def test_candidates_forget_indexes_of_single_calls():
    """A server asks the same items for ever."""
    items = Candidates("ab")
    for _ in range(3 * query._KEPT):
        items.codes({"a": 0})
    assert len(items._codes) == query._KEPT


def test_queries_about_shared_candidates_are_a_sequence_of_queries():
    items = Candidates(["c", "d"])
    rows = [Query((item,), items.ids) for item in "abe"]
    shared = Queries(rows, items)
    assert ([*shared], len(shared), shared[1]) == (rows, 3, rows[1])
    assert isinstance(shared[1:], Queries)
    assert ([*shared[1:]], shared[1:].candidates) == (rows[1:], items)
    assert [*Queries([], items)] == []
    with pytest.raises(ValueError, match="must all have the same tuple"):
        Queries([*rows, Query(("a",), ("c",))], items)
