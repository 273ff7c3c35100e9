"""Pieces of sequences: every item but a user's first is a target once, after items that stand before it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefrec_systems.sequential.batches import batches, pieces


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 5))
def test_each_item_but_the_first_is_a_target_once(n, length, seed):
    found = pieces(range(n), length, np.random.default_rng(seed))
    assert [i for p in found for i in p[1:]] == list(range(1, n))
    assert all(p == list(range(p[0], p[0] + len(p))) for p in found)
    assert max(map(len, found)) <= length + 1
    assert len(found) <= 1 + (n - 2) // length + 1
    if n <= length + 1:
        assert found == [list(range(n))]


def test_an_epoch_holds_every_row_once_in_an_order_of_its_seed():
    sequences = [[*range(u, u + 9)] for u in range(0, 90, 9)]

    def targets(seed):
        found = batches(sequences, 3, 4, seed)
        assert [len(b.inputs) for b in found[:-1]] == [4] * (len(found) - 1)
        return [t for b in found for t in b.targets[b.mask].tolist()]

    assert sorted(targets((0, 0))) == [i for s in sequences for i in s[1:]]
    assert targets((0, 0)) == targets((0, 0)) != targets((0, 1))
