"""Padded rows and sparse products against loops, of lists of their own and of one shared tuple."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from prefrec.data import RankingExample
from prefrec.rankers.matrices import SharedItems, item_scores, mean_ndcg, pad_codes, score_by_rows, top_columns

INDEX = {"a": 0, "b": 1, "c": 2}
ALL = ("c", "a", "x", "b")
SHARED = [RankingExample(f"u{n}", (), ALL, "a") for n in range(3)]
FEW, TWICE = ([replace(e, candidates=listed) for e in SHARED] for listed in (("x", "c", "a"), ("a", "b", "c", "b")))
OWN = [RankingExample("u", (), ("b", "x"), "b"), *SHARED[:1], RankingExample("v", (), ("a",), "a")]


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("rows", [SHARED, SHARED[:1], FEW, TWICE, OWN, []])
def test_codes_scores_and_products_equal_loops(rows, is_sparse):
    width = max((len(e.candidates) for e in rows), default=0)
    weights = sparse.csr_array(np.arange(2.0 * len(rows)).reshape(len(rows), 2))
    factor = sparse.csr_array(np.array([[1.0, 0, 2], [0, 3, 1]]))
    known = (weights @ factor).toarray()
    codes = pad_codes([e.candidates for e in rows], INDEX)
    values = item_scores(rows, {"a": 5.0, "c": 7.0})
    products = score_by_rows(weights, lambda some: some @ (factor if is_sparse else factor.toarray()), rows, INDEX)
    assert codes.shape == values.shape == products.shape == (len(rows), width)
    for b, e in enumerate(rows):
        for c in range(width):
            item = e.candidates[c] if c < len(e.candidates) else None
            assert codes[b, c] == (-1 if item is None else INDEX.get(item, 3))
            assert values[b, c] == (-np.inf if item is None else {"a": 5.0, "c": 7.0}.get(item, 0.0))
            want = known[b, INDEX[item]] if item in INDEX else 0.0
            assert products[b, c] == (-np.inf if item is None else want)


def test_shared_items_remember_no_index_of_a_single_call():
    """A server asks the same items for ever."""
    items = SharedItems(ALL)
    rows = [RankingExample("u", (), items, "a")]
    for _ in range(3):
        values = item_scores(rows, {"a": 5.0, "c": 7.0})
    assert values.tolist() == [[7, 5, 0, 0]]
    assert len(items._known) == 0
    for _ in range(3):
        pad_codes([items], INDEX)
    assert len(items._known) == 1


def test_ndcg_counts_ties_as_above():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 5.0, 1.0]])
    want = [1 / np.log2(3), 1 / np.log2(4), 1.0]
    assert mean_ndcg(scores, np.array([2, 0, 1])) == pytest.approx(np.mean(want))
    assert mean_ndcg(scores, np.array([2, 0, 1]), k=2) == pytest.approx((want[0] + want[2]) / 3)


@given(
    columns=st.integers(1, 700),
    k=st.integers(1, 12),
    values=st.integers(1, 400),  # few values make many ties
    hidden=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_top_columns_have_the_highest_scores(columns, k, values, hidden, seed):
    """Also among ties and candidates that are left out, with few columns and with many."""
    rng, k = np.random.default_rng(seed), min(k, columns)
    scores = rng.integers(0, values, (3, columns)).astype(float)
    scores[rng.random(scores.shape) < hidden] = -np.inf
    chosen = top_columns(scores, k)
    assert chosen.shape == (3, k)
    for row, own in zip(scores, chosen, strict=True):
        assert len(set(own.tolist())) == k
        assert sorted(row[own]) == sorted(row)[-k:]
