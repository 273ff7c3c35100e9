"""Queries, and examples, which are queries with a target."""

import pickle
from dataclasses import replace

from prefrec.data import Query, RankingExample

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
