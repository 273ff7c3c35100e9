"""prefrec.lm.trie against the sorted prefixes of all answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.lm.trie import ROOT, Trie

answers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=20)
"""Few tokens, short answers: shared prefixes, prefixes of others and duplicates abound."""


def prefixes(answers: list[list[int]]) -> list[tuple[int, ...]]:
    """The slow twin: all prefixes in preorder, children by token: tuples sort so."""
    return sorted({tuple(answer[:n]) for answer in answers for n in range(len(answer) + 1)})


@given(answers)
def test_nodes_are_the_prefixes_in_preorder(answers):
    trie, want = Trie.build(answers), prefixes(answers)
    assert [trie.path(n) for n in range(len(trie))] == want
    assert trie.depths.tolist() == [len(p) for p in want]
    assert trie.parents.tolist() == [want.index(p[:-1]) if p else -1 for p in want]
    assert trie.tokens.tolist() == [p[-1] if p else -1 for p in want]


@given(answers)
def test_children_are_those_of_the_twin(answers):
    trie, want = Trie.build(answers), prefixes(answers)
    for n, prefix in enumerate(want):
        next_tokens = sorted(p[-1] for p in want if p and p[:-1] == prefix)
        which, children = trie.children_of([n])
        assert which.tolist() == [0] * len(next_tokens)
        assert trie.tokens[children].tolist() == next_tokens
        assert (trie.parents[children] == n).all()
        assert (n in trie.inner) == bool(next_tokens)


@given(answers, st.randoms())
def test_children_of_many_nodes_are_those_of_each(answers, random):
    trie = Trie.build(answers)
    nodes = [random.randrange(len(trie)) for _ in range(7)]
    which, children = trie.children_of(nodes)
    each = [(i, c) for i, n in enumerate(nodes) for c in trie.children_of([n])[1].tolist()]
    assert list(zip(which.tolist(), children.tolist(), strict=True)) == each


@given(answers)
def test_ends_tell_ancestors(answers):
    trie, want = Trie.build(answers), prefixes(answers)
    for a, above in enumerate(want):
        for n, below in enumerate(want):
            assert (a <= n < trie.ends[a]) == (below[: len(above)] == above)


@given(answers, st.randoms())
def test_with_ancestors(answers, random):
    trie, want = Trie.build(answers), prefixes(answers)
    nodes = [random.randrange(len(trie)) for _ in range(3)]
    found = {want[n][:length] for n in nodes for length in range(len(want[n]) + 1)}
    assert trie.with_ancestors(nodes).tolist() == sorted(want.index(p) for p in found)


@given(answers)
def test_items_end_where_their_answers_end(answers):
    trie = Trie.build(answers)
    assert [list(trie.path(n)) for n in trie.terminals.tolist()] == answers
    for n in range(len(trie)):
        assert trie.items_at(n).tolist() == [i for i, a in enumerate(answers) if tuple(a) == trie.path(n)]


@given(answers)
def test_chains_run_while_nothing_branches(answers):
    trie = Trie.build(answers)
    for n in range(len(trie)):
        at = n
        while len(below := trie.children_of([at])[1]) == 1 and below[0] in trie.inner:
            at = int(below[0])
        assert trie.chain_ends[n] == at


@given(answers, st.integers(0, 100))
def test_sums_from_root(answers, seed):
    trie = Trie.build(answers)
    values = np.random.default_rng(seed).normal(size=len(trie))
    node_of = {trie.path(n): n for n in range(len(trie))}
    want = [sum(values[node_of[p[:d]]] for d in range(1, len(p) + 1)) for p in prefixes(answers)]
    np.testing.assert_allclose(trie.sums_from_root(values), want)
    assert trie.sums_from_root(values)[ROOT] == 0


@pytest.mark.parametrize("answers", [[], [()], [(1, 2), ()]])
def test_what_makes_no_trie(answers):
    with pytest.raises(ValueError, match="at least one token in each"):
        Trie.build(answers)
