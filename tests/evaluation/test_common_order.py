"""The common order: found in sorted histories, and None where histories contradict each other."""

import numpy as np
import polars as pl

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


def test_histories_that_contradict_each_other_have_no_common_order():
    sorted_ones = [["i0", "i1"], ["i1", "i2"], ["i0", "i0", "i2"]]
    assert common_order(_frame(sorted_ones), _catalogue(3)).tolist() == [0, 1, 2]
    assert common_order(_frame([*sorted_ones, ["i2", "i0"]]), _catalogue(3)) is None
    assert common_order(_frame(_histories(2000, 30, np.random.default_rng(1), None)), _catalogue(30)) is None


def test_strangers_and_empty_logs():
    places = common_order(_frame([["i0", "elsewhere", "i2"]]), _catalogue(4))
    assert places[0] < places[2]
    assert np.isnan(places[[1, 3]]).all()
    empty = _frame([])
    assert np.isnan(common_order(empty, _catalogue(2))).all()
    assert agreement(empty, _catalogue(2), np.zeros(2)) == 0
