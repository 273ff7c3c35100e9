"""The most probable titles of a catalogue, or titles drawn from it: exact best-first search on their trie."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prefrec.lm.catalogue import TrieLayout, TrieReader, children_logps, trie_reader
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.trie import ROOT, Ints, Trie

WIDTH = 32
"""Prefixes that one call extends; more are read for nothing, fewer need more calls."""


@dataclass(frozen=True)
class TopK:
    """The best answers that a search found, best first; of equal ones the first in the catalogue's order.

    Attributes:
        items: [≤ K] indices of the answers.
        logps: [≤ K] their log-probabilities.
        proven: no answer that is left out is more probable; False where the work was bounded too early to say.
        calls: of the model, the prompt's not counted.
    """

    items: Ints
    logps: NDArray[np.float32]
    proven: bool
    calls: int


@torch.no_grad()
def top_k(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    k: int,
    *,
    without: Sequence[int] | Ints = (),
    layout: TrieLayout = "cached",
    width: int = WIDTH,
    max_calls: int | None = None,
    within: CatalogueSoftmax | None = None,
) -> TopK:
    """The k most probable answers of a trie after `prompt`, by best-first search.

    An answer is at most as probable as each of its prefixes. The most probable prefixes are extended first, and
    the search ends when the next is less probable than k answers that have been found: the result is exact. Where
    nothing branches a prefix is read to the next branch at once.

    Args:
        model, prompt, trie, layout, within: as in `catalogue_logps`.
        k: number of answers, at least 1.
        without: indices of answers to leave out, as if they were not in the trie.
        width: prefixes extended a call.
        max_calls: end after as many calls; None: when the result is proven.

    Raises:
        ValueError: k is less than 1, or the prompt is empty.
        ModelError: a log-probability is no finite number.
    """
    reader = trie_reader(model, prompt, trie, layout, within)
    return _run(_Search(trie, k, without), reader, width, max_calls)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    k: int,
    rng: np.random.Generator,
    *,
    without: Sequence[int] | Ints = (),
    layout: TrieLayout = "cached",
    width: int = WIDTH,
    within: CatalogueSoftmax | None = None,
) -> Ints:
    """Draw k answers of a trie after `prompt` without replacement, in proportion to their probabilities.

    Every answer's log-probability gets Gumbel noise, and the k highest are a sample without replacement. The noise
    is drawn from the root downwards, each prefix having the highest noise below it, so that only prefixes of likely
    answers are read (stochastic beam search, Kool et al., 2019, arXiv 1903.06059).

    Args:
        model, prompt, trie, layout, width, within: as in `top_k`. Without `within`, probabilities are those among the
            children of each prefix.
        k: number of answers; fewer come back where fewer are left.
        rng: of the draws.
        without: indices of answers that are not drawn.

    Raises:
        ValueError: k is less than 1, or the prompt is empty.
        ModelError: a log-probability is no finite number.
    """
    reader = trie_reader(model, prompt, trie, layout, within)
    return _run(_Sampling(trie, k, without, rng), reader, width, None).items


def _run(search: _Search, reader: TrieReader, width: int, max_calls: int | None) -> TopK:
    calls = 0
    while (max_calls is None or calls < max_calls) and (nodes := search.next_nodes(width)):
        search.extend(nodes, *children_logps(reader, np.array(nodes)))
        calls += 1
    items, logps = search.result()
    return TopK(items, logps, proven=not search.is_open, calls=calls)


class _Search:
    """Open prefixes by probability, and the k best answers so far."""

    def __init__(self, trie: Trie, k: int, without: Sequence[int] | Ints) -> None:
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        wanted = np.ones(len(trie.terminals), dtype=bool)
        wanted[np.asarray(without, dtype=np.int64)] = False
        self.trie, self.k, self.wanted = trie, k, wanted
        # Items are in preorder of their nodes: those below a node are a range of them.
        self.counts = np.concatenate([[0], np.cumsum(wanted[trie.items])])
        self.found: list[tuple[float, int]] = []  # heap of (logp, −item), the worst first
        self.open: list[tuple[float, int]] = []  # heap of (−logp, node), the most probable first
        self.logps = {ROOT: 0.0}
        if wanted.any():
            heapq.heappush(self.open, (0.0, ROOT))

    @property
    def is_open(self) -> bool:
        """Whether an open prefix may still lead to one of the k best."""
        return bool(self.open) and -self.open[0][0] >= self._least

    @property
    def _least(self) -> float:
        """The log-probability that an answer needs to come among the k best."""
        return self.found[0][0] if len(self.found) == self.k else -np.inf

    def next_nodes(self, width: int) -> list[int]:
        """The best open prefixes, each to its next branch, in preorder; they are open no more."""
        nodes: list[int] = []
        for _ in range(width):
            if not self.is_open:
                break
            node = heapq.heappop(self.open)[1]
            nodes += range(node, int(self.trie.chain_ends[node]) + 1)
        return sorted(nodes)

    def extend(self, nodes: list[int], parents: Ints, children: Ints, logps: NDArray[np.float64]) -> None:
        """Take in the children of `nodes`, all below the nodes that were open; `parents` as index of `nodes`."""
        trie, read = self.trie, set(nodes)
        below = self.counts[trie.item_starts[trie.ends[children]]] - self.counts[trie.item_starts[children]]
        inner = trie.child_starts[children + 1] > trie.child_starts[children]
        starts = np.searchsorted(parents, np.arange(len(nodes) + 1))
        for parent, start, end in zip(nodes, starts[:-1], starts[1:], strict=True):
            found = self._scores(parent, children[start:end], logps[start:end])
            self.logps |= dict(zip(children[start:end].tolist(), found.tolist(), strict=True))
        for i, child in enumerate(children.tolist()):
            logp = self.logps[child]
            for item in trie.items_at(child).tolist():
                self._offer(logp, item)
            if inner[i] and below[i] and child not in read and logp >= self._least:
                heapq.heappush(self.open, (-logp, child))

    def result(self) -> tuple[Ints, NDArray[np.float32]]:
        """The answers found and their log-probabilities, best first."""
        best = sorted(self.found, reverse=True)
        return np.array([-i for _, i in best], dtype=np.int64), np.array([p for p, _ in best], dtype=np.float32)

    def _scores(self, parent: int, children: Ints, logps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of the children of a node, from their log-probabilities there; none above the node's."""
        return self.logps[parent] + logps

    def _offer(self, logp: float, item: int) -> None:
        if not self.wanted[item]:
            return
        if len(self.found) < self.k:
            heapq.heappush(self.found, (logp, -item))
        else:
            heapq.heappushpop(self.found, (logp, -item))


class _Sampling(_Search):
    """A search by log-probabilities with Gumbel noise."""

    def __init__(self, trie: Trie, k: int, without: Sequence[int] | Ints, rng: np.random.Generator) -> None:
        super().__init__(trie, k, without)
        self.rng = rng
        self.plain = {ROOT: 0.0}

    def _scores(self, parent: int, children: Ints, logps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return noisy log-probabilities whose maximum is the parent's (equations 8 and 9 of the paper)."""
        plain = self.plain[parent] + logps - np.logaddexp.reduce(logps)
        self.plain |= dict(zip(children.tolist(), plain.tolist(), strict=True))
        noisy = plain + self.rng.gumbel(size=len(plain))
        with np.errstate(divide="ignore"):  # of the highest one, whose log is −∞
            gap = self.logps[parent] - noisy + np.log1p(-np.exp(noisy - noisy.max()))
        return self.logps[parent] - np.maximum(0.0, gap) - np.log1p(np.exp(-np.abs(gap)))
