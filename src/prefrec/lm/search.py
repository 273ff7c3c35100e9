"""Exact best-first search on a trie: the most probable titles of a catalogue, or titles sampled from it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prefrec.lm.catalogue import TrieLayout, TrieReader, children_logps, trie_reader
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.trie import ROOT, Ints, Trie

WIDTH = 32
"""Prefixes extended per call. With more, some are read in vain; with fewer, more calls are needed."""


@dataclass(frozen=True, eq=False)
class TopK:
    """The best answers of a search, best first; ties are in the order of the catalogue.

    Attributes:
        items: [≤ K] indices of the answers.
        logps: [≤ K] their log-probabilities in nats.
        exact: whether no other answer is more probable; False if `max_calls` ended the search too early.
        calls: number of model calls, not counting that for the prompt.
    """

    items: Ints
    logps: NDArray[np.float32]
    exact: bool
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
    """Return the k most probable answers of a trie after `prompt`, by best-first search.

    The most probable prefixes are extended first, and the search ends when the next prefix is less probable than k
    answers. The result is exact, because an answer is never more probable than one of its prefixes.

    Args:
        model, prompt, trie, layout, within: as for `catalogue_logps`.
        k: number of answers.
        without: indices of answers to exclude.
        width: prefixes extended per call.
        max_calls: limit on model calls. Default: search until the result is exact.
    """
    reader = trie_reader(model, prompt, trie, layout, within)
    return _run(_Search(trie, k, without), reader, width, max_calls)


@torch.no_grad()
def sample(reader: TrieReader, k: int, rng: np.random.Generator, *, without: Sequence[int] | Ints = ()) -> Ints:
    """Sample k answers of a new reader's trie without replacement, in proportion to their probabilities.

    Stochastic beam search (Kool et al., 2019, arXiv 1903.06059): the k highest log-probabilities with Gumbel noise
    are such a sample. The noise is sampled from the root downwards, so only prefixes of likely answers are read.

    Args:
        reader: result of `trie_reader`. Without its `within`, probabilities are normalised over the children of each
            prefix.
        k, without: as for `top_k`.

    Returns:
        Indices of at most k answers; fewer if `without` leaves fewer.
    """
    return _run(_Sampling(reader.trie, k, without, rng), reader, WIDTH, None).items


@torch.no_grad()
def rescored(reader: TrieReader, best: TopK) -> TopK:
    """Score and sort the answers of a search again by a new reader, independently of the search's calls.

    In 16 bits, rounding depends on the shape of a call. Here each answer has its own call after the prompt.
    """
    trie, within = reader.trie, reader.within
    calls: dict[int, tuple[Ints, NDArray[np.float64]]] = {}
    logps = np.zeros(len(best.items), dtype=np.float32)
    for index, terminal in enumerate(trie.terminals[best.items].tolist()):
        path = trie.with_ancestors([terminal])
        read = path[:-1]
        if within is not None:  # the tokens after the last branch are certain
            read = read[: 1 + np.flatnonzero(within.branches[read]).max(initial=0)]
        if (last := int(read[-1])) not in calls:
            calls[last] = children_logps(reader.at_prompt(), read)[1:]
        children, values = calls[last]
        logps[index] = values[np.isin(children, path)].sum()
    order = np.lexsort((best.items, -logps))
    return replace(best, items=best.items[order], logps=logps[order])


def _run(search: _Search, reader: TrieReader, width: int, max_calls: int | None) -> TopK:
    calls = 0
    while (max_calls is None or calls < max_calls) and (nodes := search.next_nodes(width)):
        search.extend(nodes, *children_logps(reader, np.array(nodes)))
        calls += 1
    best = sorted(search.best, reverse=True)
    items = np.array([-negative for _, negative in best], dtype=np.int64)
    logps = np.array([logp for logp, _ in best], dtype=np.float32)
    return TopK(items, logps, exact=not search.is_open, calls=calls)


class _Search:
    """The state of a search: open prefixes by probability, and the k best answers so far."""

    def __init__(self, trie: Trie, k: int, without: Sequence[int] | Ints) -> None:
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        wanted = np.ones(len(trie.terminals), dtype=bool)
        wanted[np.asarray(without, dtype=np.int64)] = False
        self.trie, self.k, self.wanted = trie, k, wanted
        # Items are in preorder of their nodes, so the wanted items below a node are a difference of two counts.
        self.counts = np.concatenate([[0], np.cumsum(wanted[trie.items])])
        self.best: list[tuple[float, int]] = []  # heap of (logp, −item), the worst first
        self.open: list[tuple[float, int]] = []  # heap of (−logp, node), the most probable first
        self.logps = {ROOT: 0.0}
        if wanted.any():
            heapq.heappush(self.open, (0.0, ROOT))

    @property
    def is_open(self) -> bool:
        """Whether an open prefix may still lead to one of the k best answers."""
        # ≥ and not >: an equally probable answer may come first in the catalogue's order.
        return bool(self.open) and -self.open[0][0] >= self._least

    @property
    def _least(self) -> float:
        """The minimum log-probability of an answer among the k best."""
        return self.best[0][0] if len(self.best) == self.k else -np.inf

    def next_nodes(self, width: int) -> list[int]:
        """Pop the best open prefixes, extend each to its next branch, and return their nodes in preorder."""
        nodes: list[int] = []
        for _ in range(width):
            if not self.is_open:
                break
            node = heapq.heappop(self.open)[1]
            nodes += range(node, int(self.trie.chain_ends[node]) + 1)
        return sorted(nodes)

    def extend(self, nodes: list[int], parents: Ints, children: Ints, logps: NDArray[np.float64]) -> None:
        """Add the children of `nodes` with their log-probabilities; `parents` are indices into `nodes`."""
        trie, read = self.trie, set(nodes)
        below = self.counts[trie.item_starts[trie.ends[children]]] - self.counts[trie.item_starts[children]]
        inner = trie.child_starts[children + 1] > trie.child_starts[children]
        starts = np.searchsorted(parents, np.arange(len(nodes) + 1))
        for parent, start, end in zip(nodes, starts[:-1], starts[1:], strict=True):
            scores = self._scores(parent, children[start:end], logps[start:end])
            self.logps |= dict(zip(children[start:end].tolist(), scores.tolist(), strict=True))
        for i, child in enumerate(children.tolist()):
            logp = self.logps[child]
            for item in trie.items_at(child).tolist():
                if self.wanted[item]:
                    push = heapq.heappush if len(self.best) < self.k else heapq.heappushpop
                    push(self.best, (logp, -item))
            if inner[i] and below[i] and child not in read and logp >= self._least:
                heapq.heappush(self.open, (-logp, child))

    def _scores(self, parent: int, children: Ints, logps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of a node's children from their log-probabilities; none exceeds the node's score."""
        return self.logps[parent] + logps


class _Sampling(_Search):
    """A search by log-probabilities with Gumbel noise."""

    def __init__(self, trie: Trie, k: int, without: Sequence[int] | Ints, rng: np.random.Generator) -> None:
        super().__init__(trie, k, without)
        self.rng = rng
        self.plain = {ROOT: 0.0}

    def _scores(self, parent: int, children: Ints, logps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return noisy log-probabilities whose maximum is the parent's (equations 8 and 9 of the paper)."""
        # Tokens outside the trie have some probability, too. It is given to the children, so that no sample is lost.
        plain = self.plain[parent] + logps - np.logaddexp.reduce(logps)
        self.plain |= dict(zip(children.tolist(), plain.tolist(), strict=True))
        noisy = plain + self.rng.gumbel(size=len(plain))
        # Equation 9 in the form of the paper's appendix B.3; the direct form is inaccurate at low probabilities.
        with np.errstate(divide="ignore"):  # log(0) at the maximum is intended
            gap = self.logps[parent] - noisy + np.log1p(-np.exp(noisy - noisy.max()))
        return self.logps[parent] - np.maximum(0.0, gap) - np.log1p(np.exp(-np.abs(gap)))
