"""The shared types."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue, PreparedData, RankingExample, examples_to_frame, frame_to_examples
from prefrec.errors import DataError

EXAMPLE = RankingExample("u", ("a",), ("b", "c"), "c")
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ["a", "b"], "title": ["Air", "Bush"]}))


def test_examples_round_trip_through_a_frame():
    assert frame_to_examples(examples_to_frame([EXAMPLE])) == [EXAMPLE]
    assert frame_to_examples(examples_to_frame([])) == []
    assert EXAMPLE.target_index == 1


def test_catalogue():
    assert (CATALOGUE.ids, CATALOGUE.titles_of(["b", "a"])) == (["a", "b"], ["Bush", "Air"])
    with pytest.raises(DataError, match="item 'z' is not in the catalogue of 2 items"):
        CATALOGUE.titles_of(["z"])


def test_prepared_data_knows_its_splits():
    data = PreparedData(CATALOGUE, [EXAMPLE], [], [], pl.DataFrame())
    assert (data.split("train"), data.domain) == ([EXAMPLE], "generic")
    with pytest.raises(DataError, match="unknown split 'dev': expected train, validation or test"):
        data.split("dev")


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.integers(0, 13))
def test_some_rows_are_spread_over_the_users(users, n):
    rows = [RankingExample(u, (str(i),), ("b", "c"), "c") for i, u in enumerate(users)]
    data = PreparedData(CATALOGUE, [], [], rows, pl.DataFrame())
    found = data.examples("test", n)
    assert len(found) == min(n, len(rows))
    assert found == [e for e in rows if e in found] == data.examples("test", n)
    taken, there = Counter(e.user_id for e in found), Counter(users)
    for user in there:
        for other in there:
            assert taken[user] <= taken[other] + 1 or taken[other] == there[other]
