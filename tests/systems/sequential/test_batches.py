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
        return [t for b in found for t in b.targets[b.mask].tolist()]

    assert sorted(targets((0, 0))) == [i for s in sequences for i in s[1:]]
    assert targets((0, 0)) == targets((0, 0)) != targets((0, 1))


def test_batches_have_pieces_of_like_length_and_about_as_many_targets():
    sequences = [list(range(n)) for n in [2] * 60 + [4] * 30 + [21] * 9]
    found = batches(sequences, 20, 11, (0,))
    counts = [int(b.mask.sum()) for b in found]
    assert sum(counts) == 60 + 90 + 180
    assert len(found) == 9
    assert max(counts) - min(counts) <= 2 * 20  # by no more than the longest piece on either side
    assert sum(b.mask.numel() for b in found) < 1.3 * sum(counts)  # 20 columns in nearly every batch of mixed lengths
    lengths = [b.inputs.shape[1] for b in found]
    assert lengths != sorted(lengths)
