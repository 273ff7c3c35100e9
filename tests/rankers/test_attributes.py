"""Attributes of items as parts of a blend, against loops over the history."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError
from prefrec.rankers import attributes, matrices
from prefrec.rankers.attributes import attribute_ranker, check_attribute

IDS = [f"i{n}" for n in range(6)]


def _catalogue(values, dtype=None) -> Catalogue:
    return Catalogue(pl.DataFrame({"item_id": IDS, "title": IDS, "value": pl.Series(values, dtype=dtype)}))


def _score(values, how, histories, candidates=None, dtype=None):
    lists = candidates or [IDS] * len(histories)
    rows = [RankingExample("u", tuple(h), tuple(c), c[0]) for h, c in zip(histories, lists, strict=True)]
    return attribute_ranker(_catalogue(values, dtype), "value", how).score(rows)


def _weights(history, known):
    """Item of the history with a value → its weight."""
    return [(i, 2 ** (-age / attributes.HALF_LIFE)) for age, i in enumerate(reversed(history)) if i in known]


def _mean(known, of_item):
    return sum(map(of_item, known)) / len(known) if known else 0.0


def _slow_same(values, history, candidate):
    sets = {i: {*v.split("|")} for i, v in zip(IDS, values, strict=True) if v}
    weights = _weights(history, sets)

    def share(item):
        common = ((w, sets[i] & sets[item], len(sets[i]) * len(sets[item])) for i, w in weights)
        return sum(w * len(c) / math.sqrt(n) for w, c, n in common) / sum(w for _, w in weights)

    return 0.0 if not weights else share(candidate) if candidate in sets else _mean(sets, share)


def _slow_near(values, history, candidate):
    numbers = {i: v for i, v in zip(IDS, values, strict=True) if v is not None and math.isfinite(v)}
    if numbers and min(numbers.values()) >= 0 and max(numbers.values()) > 0:
        least = min(v for v in numbers.values() if v > 0)
        numbers = {i: math.log(max(v, least)) for i, v in numbers.items()}
    weights = _weights(history, numbers)
    if not weights:
        return 0.0
    middle = sum(w * numbers[i] for i, w in weights) / sum(w for _, w in weights)
    if candidate in numbers:
        return -abs(numbers[candidate] - middle)
    return _mean(numbers, lambda i: -abs(numbers[i] - middle))


histories = st.lists(st.lists(st.sampled_from([*IDS, "gone"]), max_size=8), min_size=1, max_size=4)
lists = st.lists(st.sampled_from([*IDS, "gone"]), min_size=1, max_size=7, unique=True)
kinds = st.sampled_from(["red", "green", "blue", "red|blue", "red|green|blue", "", None])
numbers = st.sampled_from([0.0, 0.5, 1.0, 7.25, 1e6, -3.0, math.nan, math.inf, None])


@given(
    values=st.lists(kinds, min_size=6, max_size=6), asked=histories, data=st.data(), dense=st.sampled_from([0, 999])
)
def test_same_equals_a_loop_over_the_history(values, asked, data, dense):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "DENSE_CELLS", dense)
        patch.setattr(matrices, "CELLS_AT_A_TIME", 12)
        drawn = [data.draw(lists) for _ in asked]
        for candidates in (None, drawn):
            scores = _score(values, "same", asked, candidates, pl.String)
            for history, row, own in zip(asked, candidates or [IDS] * len(asked), scores, strict=True):
                want = [_slow_same(values, history, c) for c in row]
                np.testing.assert_allclose(own[: len(row)], want, atol=1e-12)
                assert np.isneginf(own[len(row) :]).all()


@given(values=st.lists(numbers, min_size=6, max_size=6), asked=histories, data=st.data())
def test_near_equals_a_loop_over_the_history(values, asked, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "CELLS_AT_A_TIME", 12)
        drawn = [data.draw(lists) for _ in asked]
        for candidates in (None, drawn):
            scores = _score(values, "near", asked, candidates, pl.Float64)
            for history, row, own in zip(asked, candidates or [IDS] * len(asked), scores, strict=True):
                want = [_slow_near(values, history, c) for c in row]
                np.testing.assert_allclose(own[: len(row)], want, rtol=1e-6, atol=1e-6)
                assert np.isneginf(own[len(row) :]).all()


def test_an_item_without_a_value_is_as_good_as_the_mean_and_a_history_without_values_says_nothing():
    (own,) = _score(["red", "red", "blue", "blue", "blue", None], "same", [["i0"]])
    np.testing.assert_allclose(own, [1, 1, 0, 0, 0, 0.4])
    (own,) = _score([1.0, 1.0, math.e, math.e, None, math.nan], "near", [["i0"]])
    np.testing.assert_allclose(own, [0, 0, -1, -1, -0.5, -0.5])
    for values, how in ((["red"] * 5 + [None], "same"), ([1.0, 2.0, 3.0, 4.0, 5.0, None], "near")):
        assert not _score(values, how, [["i5"], [], ["gone"]]).any()
    assert not _score([None] * 6, "same", [["i0"]], dtype=pl.String).any()
    assert not _score([None] * 6, "near", [["i0"]], dtype=pl.Float64).any()


@pytest.mark.parametrize("text", ["a|b", "a, b", "a;b", " a ; b ", "b|a|a|"])
def test_a_text_may_name_several_values(text):
    (own,) = _score(["a", "b", text, "c", "a,b", "ab"], "same", [["i0"]])
    np.testing.assert_allclose(own, [1, 0, math.sqrt(0.5), 0, 0, 0])  # a comma without a space is part of a value


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 1, 2, 2, 3, None], pl.Int64),
        ([1.0, 1.0, 2.0, 2.0, 3.0, math.nan], pl.Float64),
        ([["x"], ["x"], ["y"], ["y"], [], None], pl.List(pl.String)),
        ([True, True, False, False, False, None], pl.Boolean),
    ],
)
def test_numbers_truths_and_lists_are_values_too(values, dtype):
    (own,) = _score(values, "same", [["i0"]], dtype=dtype)
    assert own[:4].tolist() == [1, 1, 0, 0]
    assert 0 < own[5] < 1


@pytest.mark.parametrize(
    ("column", "how", "message"),
    [
        (
            "valeu",
            "same",
            "^rankers.blend.attributes: the catalogue has no column 'valeu'; .*; did you mean value\\?",
        ),
        ("value", "near", "near compares numbers, but 'value' has the type String: write value: same$"),
        ("nested", "same", "'nested' has the type Struct"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(column, how, message):
    frame = _catalogue(["red"] * 6).frame.with_columns(nested=pl.struct("item_id"))
    with pytest.raises(ConfigError, match=message):
        check_attribute(Catalogue(frame), column, how, "rankers.blend.attributes")
