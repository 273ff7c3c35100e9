"""Spread of metrics over users, against counting."""

import math
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation.by_user import UserSpread, gini, user_spread

ROW = st.tuples(st.sampled_from("uvwxyz"), st.integers(1, 14), st.sampled_from([0, 0, 1, 3]))


def _predictions(rows, ranker="a"):
    columns = {"ranker": [ranker] * len(rows), "row": range(len(rows)), "user_id": [user for user, *_ in rows]}
    return pl.DataFrame(columns | {"rank": [rank for _, rank, _ in rows], "tied": [tied for *_, tied in rows]})


@given(rows=st.lists(ROW, min_size=1, max_size=12))
def test_spread_over_users_equals_counting(rows):
    """Each way to break the ties of a user has the same probability."""
    hits, values = {}, {}
    for user in {user for user, *_ in rows}:
        places = [range(rank, rank + tied + 1) for of, rank, tied in rows if of == user][:4]
        own = [(rank, tied) for of, rank, tied in rows if of == user]
        missed = math.prod(sum(p > 10 for p in range(r, r + t + 1)) / (t + 1) for r, t in own)
        if len(own) <= 4:
            ways = [*product(*places)]
            assert 1 - missed == pytest.approx(sum(min(way) <= 10 for way in ways) / len(ways))
        hits[user] = 1 - missed
        gains = [np.mean([1 / math.log2(1 + p) if p <= 10 else 0 for p in range(r, r + t + 1)]) for r, t in own]
        values[user] = sum(gains) / len(gains)
    (found,) = user_spread(_predictions(rows)).values()
    assert found.users == len(values)
    assert found.with_hit == pytest.approx(sum(hits.values()) / len(hits))
    ordered = sorted(values.values())
    want = [ordered[math.ceil(round(share * len(ordered), 6)) - 1] for share in np.arange(1, 10) / 10]
    assert found.deciles == pytest.approx(want)
    apart = sum(abs(a - b) for a in ordered for b in ordered) / len(ordered) ** 2
    if sum(ordered):
        assert found.gini == pytest.approx(apart / 2 / np.mean(ordered), abs=1e-9)
    else:
        assert math.isnan(found.gini)


def test_rankers_are_apart_and_their_spreads_survive_json():
    even, uneven = [(user, 1, 0) for user in "uvwxy"], [("u", 1, 0), *((user, 11, 0) for user in "vwxy")]
    found = user_spread(pl.concat([_predictions(even, "even"), _predictions(uneven, "uneven")]))
    assert found["even"] == UserSpread(5, 1.0, [1.0] * 9, 0.0)
    assert found["uneven"] == UserSpread(5, pytest.approx(0.2), [0.0] * 8 + [1.0], pytest.approx(0.8))
    (nobody,) = user_spread(_predictions([("u", 99, 0)])).values()
    assert nobody.to_json() == {"users": 1, "with_hit": 0.0, "deciles": [0.0] * 9, "gini": None}
    for spread in (*found.values(), nobody):
        assert UserSpread.from_json(spread.to_json()) == spread
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)
