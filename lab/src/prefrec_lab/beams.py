"""Beam search over the titles of a catalogue, beside exact ranking by the same model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from prefrec.lm.catalogue import TrieReader, children_logps
from prefrec.lm.trie import ROOT

WIDTH = 64
"""Prefixes that exact search extends per call."""


class Titles:
    """The log-probabilities of a trie's prefixes after one prompt. Each prefix is read once, for all searches.

    Args:
        reader: new reader of a trie in which no answer is the beginning of another one: all have an end token.
        without: indices of answers to leave out.
    """

    def __init__(self, reader: TrieReader, without: Collection[int] = ()) -> None:
        trie = reader.trie
        self.reader, self.trie = reader, trie
        self.allowed = np.ones(len(trie.terminals), dtype=bool)
        self.allowed[list(without)] = False
        before = np.concatenate([[0], np.cumsum(self.allowed[trie.items])])
        # Items are in preorder of their nodes, so those below a node are successive.
        self._leads_somewhere = before[trie.item_starts[trie.ends]] > before[trie.item_starts[:-1]]
        self._is_answer = np.diff(trie.child_starts) == 0
        self.logps = {ROOT: 0.0}
        self._read: set[int] = set()

    @torch.no_grad()
    def children(self, nodes: Sequence[int]) -> list[int]:
        """Return the children of nodes that lead to an answer; `logps` then has their log-probabilities."""
        wanted: set[int] = set()
        for node in nodes:
            if node not in self._read:
                wanted.update(range(node, int(self.trie.chain_ends[node]) + 1))
        if wanted:
            # In preorder a parent comes before its children.
            unread = sorted(wanted)
            which, found, logps = children_logps(self.reader, np.array(unread))
            for parent, child, logp in zip(which.tolist(), found.tolist(), logps.tolist(), strict=True):
                self.logps[child] = self.logps[unread[parent]] + logp
            self._read |= wanted
        _, below = self.trie.children_of(nodes)
        leading: list[int] = below[self._leads_somewhere[below]].tolist()
        return leading

    def search(self, width: int) -> list[list[int]]:
        """Return the prefixes that beam search keeps after each step, the most probable first.

        The last are all answers. An answer stays among the prefixes, and competes with them.
        """
        kept, steps = [ROOT], []
        while not all(self._is_answer[kept]):
            answers = [node for node in kept if self._is_answer[node]]
            longer = self.children([node for node in kept if not self._is_answer[node]])
            kept = sorted([*answers, *longer], key=self._order)[:width]
            steps.append(kept)
        return steps

    def items(self, answers: Sequence[int]) -> list[int]:
        """Return the items of answers in their order; equal titles are in the order of the catalogue."""
        found: list[int] = []
        for node in answers:
            equal = self.trie.items_at(node)
            found += equal[self.allowed[equal]].tolist()
        return found

    def beams(self, width: int) -> list[int]:
        """Return the items that beam search finds, the most probable first."""
        return self.items(self.search(width)[-1])

    def best(self, k: int) -> list[int]:
        """Return the k most probable items, the most probable first. The result is exact.

        As in `prefrec.lm.search.top_k`, the most probable prefixes are extended until none of those left is as
        probable as k answers.
        """
        answers: list[int] = []
        prefixes, least = [ROOT], -np.inf
        while prefixes:
            extended, prefixes = prefixes[:WIDTH], prefixes[WIDTH:]
            for node in self.children(extended):
                (answers if self._is_answer[node] else prefixes).append(node)
            answers = sorted(answers, key=self._order)[:k]
            if len(answers) == k:
                least = self.logps[answers[-1]]
            promising = [node for node in prefixes if self.logps[node] >= least]
            prefixes = sorted(promising, key=self._order)
        return self.items(answers)[:k]

    def logp(self, item: int) -> float:
        """Return the log-probability of an item's title in nats."""
        end = int(self.trie.terminals[item])
        self.children([node for node in self.trie.with_ancestors([end]).tolist() if node != end])
        return self.logps[end]

    def survival(self, item: int, width: int) -> int:
        """Return the number of steps after which beam search has kept the prefix of an item."""
        ancestors = set(self.trie.with_ancestors([self.trie.terminals[item]]).tolist())
        steps = [any(node in ancestors for node in kept) for kept in self.search(width)]
        return steps.index(False) if False in steps else len(steps)

    def _order(self, node: int) -> tuple[float, int]:
        """Return the key by which prefixes are sorted: the most probable first, ties in the order of the trie."""
        return -self.logps[node], node
