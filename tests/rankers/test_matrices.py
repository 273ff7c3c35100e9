"""Padded rows and sparse products against loops, of lists of their own and of shared candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from prefrec.data import Candidates, Queries, Query
from prefrec.rankers.matrices import candidate_codes, item_scores, mean_ndcg, pad_codes, score_by_rows, top_columns

INDEX = {"a": 0, "b": 1, "c": 2}
ALL = ("c", "a", "x", "b")
OWN = [Query((), ("b", "x")), Query((), ALL), Query((), ("a",))]


def _shared(listed) -> Queries:
    return Queries([Query((), listed, user_id=f"u{n}") for n in range(3)], Candidates(listed))


SHARED, FEW, TWICE, NONE = (_shared(listed) for listed in (ALL, ("x", "c", "a"), ("a", "b", "c", "b"), ("x", "y")))


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("rows", [SHARED, SHARED[:1], [*SHARED], FEW, TWICE, NONE, OWN, OWN[:1], []])
def test_codes_scores_and_products_equal_loops(rows, is_sparse):
    width = max((len(q.candidates) for q in rows), default=0)
    weights = sparse.csr_array(np.arange(2.0 * len(rows)).reshape(len(rows), 2))
    factor = sparse.csr_array(np.array([[1.0, 0, 2], [0, 3, 1]]))
    known = (weights @ factor).toarray()
    codes = pad_codes([q.candidates for q in rows], INDEX)
    np.testing.assert_array_equal(np.broadcast_to(candidate_codes(rows, INDEX), codes.shape), codes)
    values = item_scores(rows, {"a": 5.0, "c": 7.0})
    products = score_by_rows(weights, lambda some: some @ (factor if is_sparse else factor.toarray()), rows, INDEX)
    assert codes.shape == values.shape == products.shape == (len(rows), width)
    for b, q in enumerate(rows):
        for c in range(width):
            item = q.candidates[c] if c < len(q.candidates) else None
            assert codes[b, c] == (-1 if item is None else INDEX.get(item, 3))
            assert values[b, c] == (-np.inf if item is None else {"a": 5.0, "c": 7.0}.get(item, 0.0))
            want = known[b, INDEX[item]] if item in INDEX else 0.0
            assert products[b, c] == (-np.inf if item is None else want)


@pytest.mark.parametrize("rows", [SHARED, OWN])
def test_an_index_without_items_scores_0(rows):
    scores = score_by_rows(np.zeros((3, 1)), lambda some: np.zeros((len(some), 0)), rows, {})
    assert {*scores.ravel().tolist()} <= {0.0, -np.inf}
    assert (scores == 0).sum() == sum(len(q.candidates) for q in rows)


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
