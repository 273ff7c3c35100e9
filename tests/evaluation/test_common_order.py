"""The common order: exact on sorted histories, close to the best on small graphs, and nothing on random ones."""

import itertools

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue
from prefrec.evaluation.shortcuts import agreement, common_order


def _frame(sequences: list[list[str]]) -> pl.DataFrame:
    return make_log([(f"u{u}", i, t) for u, items in enumerate(sequences) for t, i in enumerate(items)])


def _catalogue(n: int) -> Catalogue:
    return Catalogue(pl.DataFrame({"item_id": [f"i{i}" for i in range(n)], "title": [f"t{i}" for i in range(n)]}))


def _histories(n_users: int, n_items: int, rng: np.random.Generator, key: np.ndarray | None) -> list[list[str]]:
    drawn = [rng.choice(n_items, 8, replace=False) for _ in range(n_users)]
    return [[f"i{i}" for i in (d if key is None else d[np.argsort(key[d])])] for d in drawn]


def test_a_hidden_key_is_found():
    rng = np.random.default_rng(0)
    key = rng.permutation(40)
    frame, catalogue = _frame(_histories(300, 40, rng, key)), _catalogue(40)
    places = common_order(frame, catalogue)
    assert agreement(frame, catalogue, places) == 1.0
    assert np.corrcoef(places, key)[0, 1] > 0.99


def test_random_histories_have_no_common_order():
    frame, catalogue = _frame(_histories(2000, 30, np.random.default_rng(1), None)), _catalogue(30)
    assert 0.5 <= agreement(frame, catalogue, common_order(frame, catalogue)) < 0.6


@pytest.mark.parametrize("seed", range(3))
def test_close_to_the_best_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    frame, catalogue = _frame([[f"i{i}" for i in rng.permutation(6)[:3]] for _ in range(9)]), _catalogue(6)
    best = max(agreement(frame, catalogue, np.array(order)) for order in itertools.permutations(np.arange(6.0)))
    found = agreement(frame, catalogue, common_order(frame, catalogue))
    assert 0.5 <= found <= best
    assert found >= best - 0.2


def test_strangers_and_empty_logs():
    places = common_order(_frame([["i0", "elsewhere", "i2"]]), _catalogue(4))
    assert places[0] < places[2]
    assert np.isnan(places[[1, 3]]).all()
    empty = _frame([])
    assert np.isnan(common_order(empty, _catalogue(2))).all()
    assert agreement(empty, _catalogue(2), np.zeros(2)) == 0
