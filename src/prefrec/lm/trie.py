"""A token trie of answers in flat arrays: shared prefixes are stored and scored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
ROOT = 0
"""The node of the empty prefix."""


@dataclass(frozen=True, eq=False)
class Trie:
    """The prefixes of I answers as M nodes, numbered in preorder, with children sorted by token.

    The subtree of n is the range n … ends[n] − 1. Node a is n or an ancestor of n if and only if a ≤ n < ends[a].
    Children, and the items that end at a node, are in CSR form.

    Attributes:
        tokens: [M] last token of each prefix; −1 at the root.
        parents: [M] parent of each node; −1 at the root.
        depths: [M] length of each prefix, in tokens.
        ends: [M] one past the last node of each subtree.
        child_starts: [M + 1]; the children of n are `children[child_starts[n]:child_starts[n + 1]]`.
        children: [M − 1] nodes; siblings are sorted by token.
        terminals: [I] node where each answer ends; equal answers share a node.
        item_starts: [M + 1]; the items that end at n are `items[item_starts[n]:item_starts[n + 1]]`.
        items: [I] indices of the answers; those of a node are sorted.
    """

    tokens: Ints
    parents: Ints
    depths: Ints
    ends: Ints
    child_starts: Ints
    children: Ints
    terminals: Ints
    item_starts: Ints
    items: Ints

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]]) -> Trie:
        """Build the trie of answers (token ids with end token); raise ValueError if there is none, or an empty one.

        Two answers share their first token, two are equal, and one is the beginning of another:

            >>> trie = Trie.build([(5, 6, 9), (5, 9), (7, 9), (5, 9), (7,)])
            >>> trie.tokens.tolist(), trie.parents.tolist()
            ([-1, 5, 6, 9, 9, 7, 9], [-1, 0, 1, 2, 1, 0, 5])
            >>> trie.terminals.tolist(), trie.items_at(4).tolist()
            ([3, 4, 6, 4, 5], [1, 3])
            >>> [a.tolist() for a in trie.children_of([0, 1, 3])]
            [[0, 0, 1, 1], [1, 5, 2, 4]]
        """
        if not answers or not all(map(len, answers)):
            raise ValueError("a trie needs at least one answer, and at least one token in each")
        tokens, parents, depths, ends, terminals = _preorder([tuple(a) for a in answers])
        m = len(tokens)
        return cls(
            tokens=tokens,
            parents=parents,
            depths=depths,
            ends=ends,
            child_starts=_starts(parents[1:], m),
            children=1 + np.argsort(parents[1:], kind="stable"),
            terminals=terminals,
            item_starts=_starts(terminals, m),
            items=np.argsort(terminals, kind="stable"),
        )

    def __len__(self) -> int:
        """Return the number of nodes M, root included."""
        return len(self.tokens)

    @cached_property
    def inner(self) -> Ints:
        """The nodes with children: the prefixes whose next token must be predicted."""
        return np.flatnonzero(np.diff(self.child_starts))

    @cached_property
    def chain_ends(self) -> Ints:
        """The first node [M] at or below each node whose children are not exactly one inner node."""
        # In preorder an only child follows its parent, so a chain without branches is a range of numbers.
        counts = np.diff(self.child_starts)
        goes_on = np.zeros(len(self), dtype=bool)
        goes_on[:-1] = (counts[:-1] == 1) & (counts[1:] > 0)
        stops = np.flatnonzero(~goes_on)
        return stops[np.searchsorted(stops, np.arange(len(self)))]

    def children_of(self, nodes: ArrayLike) -> tuple[Ints, Ints]:
        """Return for each child of `nodes` the index [K] of its parent in `nodes`, and the child [K]."""
        at = np.asarray(nodes, dtype=np.int64)
        counts = self.child_starts[at + 1] - self.child_starts[at]
        which = np.repeat(np.arange(len(at)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return which, self.children[self.child_starts[at][which] + within]

    def items_at(self, node: int) -> Ints:
        """Return the items whose answer ends at `node`."""
        return self.items[self.item_starts[node] : self.item_starts[node + 1]]

    def with_ancestors(self, nodes: ArrayLike) -> Ints:
        """Return `nodes` and all their ancestors, in preorder."""
        levels = [np.asarray(nodes, dtype=np.int64)]
        while len(levels[-1]):
            above = np.unique(self.parents[levels[-1]])
            levels.append(above[above >= ROOT])
        return np.unique(np.concatenate(levels))

    def path(self, node: int) -> tuple[int, ...]:
        """Return the tokens of the prefix of `node`."""
        out = []
        while node != ROOT:
            out.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return tuple(reversed(out))

    def sums_from_root(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums [M] of `values` [M] over each node and its ancestors, excluding the root."""
        out = np.where(np.arange(len(self)) == ROOT, 0.0, values)
        order = np.argsort(self.depths, kind="stable")
        levels = np.split(order, np.searchsorted(self.depths[order], np.arange(1, self.depths.max() + 1)))
        for level in levels[1:]:
            out[level] += out[self.parents[level]]
        return out


def _preorder(answers: Sequence[tuple[int, ...]]) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Return tokens, parents, depths and ends of the nodes, and the terminals of the answers.

    In lexicographic order, the answers visit the trie in preorder. Each answer adds a node for every token after its
    common beginning with the preceding answer.
    """
    tokens, parents, depths, ends = [-1], [-1], [0], [0]
    terminals = np.empty(len(answers), dtype=np.int64)
    path: list[int] = [ROOT]
    last: tuple[int, ...] = ()
    for i in sorted(range(len(answers)), key=answers.__getitem__):
        answer = answers[i]
        differ = (n for n, (x, y) in enumerate(zip(last, answer, strict=False)) if x != y)
        shared = next(differ, min(len(last), len(answer)))
        for node in path[1 + shared :]:
            ends[node] = len(tokens)
        del path[1 + shared :]
        for token in answer[len(path) - 1 :]:
            tokens.append(token)
            parents.append(path[-1])
            depths.append(len(path))
            ends.append(0)
            path.append(len(tokens) - 1)
        terminals[i] = path[-1]
        last = answer
    for node in path:
        ends[node] = len(tokens)
    return np.array(tokens), np.array(parents), np.array(depths), np.array(ends), terminals


def _starts(owners: Ints, m: int) -> Ints:
    """Return the CSR pointers [m + 1] of entries with these owners, which are below `m`."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=m))])
