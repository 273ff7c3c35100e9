"""Likelihood within a catalogue: at each token only the children of the title trie compete.

log p(title | prompt) = Σ log softmax over the children, summed over the nodes where the title's path branches. The
probabilities of all titles therefore sum to one. A prefix with one child contributes nothing and is not computed. MSL
(arXiv 2504.04178) masks the softmax in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prefrec.lm.trie import ROOT, Ints, Trie

Route = list[tuple[int, int]]
"""Where the path of an answer branches: index in the answer of each token with siblings, and the node before it."""


class CatalogueSoftmax:
    """The tokens that may follow each prefix of a catalogue's titles.

    Args:
        answers: token ids of every title, end token included. Train with the items of the training log, because
            other items could only be pushed down. Score with all items that may be asked about.

    Attributes:
        branches: bool [M], True for trie nodes with several children.
        words: [U] ascending ids of all tokens with siblings; only they need logits.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.trie = Trie.build(answers)
        counts = np.diff(self.trie.child_starts)
        self.branches = counts > 1
        inner = np.flatnonzero(self.branches)
        _, children = self.trie.children_of(inner)
        tokens = self.trie.tokens[children]
        words = np.unique(tokens)
        self.words = torch.from_numpy(words)
        self._columns = np.searchsorted(words, tokens)
        self._starts = np.concatenate([[0], np.cumsum(np.where(self.branches, counts, 0))])
        self._words_on: dict[torch.device, Tensor] = {}
        self._routes: dict[tuple[int, ...], Route] = {}
        self._terminals: dict[tuple[int, ...], int] | None = None
        self._only_root = inner.tolist() == [ROOT]

    def route(self, answer: Sequence[int]) -> Route:
        """Return where the path of `answer` (a title's tokens, or the beginning of them) branches.

        Raise ValueError if the answer is not in the catalogue.
        """
        key = tuple(answer)
        if key in self._routes:
            return self._routes[key]
        trie, node = self.trie, ROOT
        route: Route = []
        for offset, token in enumerate(key):
            children = trie.children[trie.child_starts[node] : trie.child_starts[node + 1]]
            at = int(np.searchsorted(trie.tokens[children], token))
            if at == len(children) or trie.tokens[children[at]] != token:
                raise self._unknown(key)
            if len(children) > 1:
                route.append((offset, node))
            node = int(children[at])
        self._routes[key] = route
        return route

    def terminal(self, answer: Sequence[int]) -> int:
        """Return the trie node where a whole title ends; raise ValueError if it is not in the catalogue."""
        if self._terminals is None:
            self._terminals = {self.trie.path(n): n for n in np.unique(self.trie.terminals).tolist()}
        if (node := self._terminals.get(tuple(answer))) is None:
            raise self._unknown(tuple(answer))
        return node

    def _unknown(self, answer: tuple[int, ...]) -> ValueError:
        return ValueError(f"the answer {answer} is not in the catalogue of {len(self.trie.terminals)} titles")

    def cut(self, answer: Sequence[int]) -> tuple[int, ...]:
        """Return the answer up to its last branch. The rest is certain and need not be read."""
        route = self.route(answer)
        return tuple(answer[: route[-1][0] + 1 if route else 1])

    def words_on(self, device: torch.device) -> Tensor:
        """Return `words` on a device, to which they are copied once."""
        if device not in self._words_on:
            self._words_on[device] = self.words.to(device)
        return self._words_on[device]

    def token_logps(self, logits: Tensor, index: Tensor, targets: Tensor, competing: Tensor | None) -> Tensor:
        """Return log-probabilities [M], in float32, of tokens among the children of their nodes.

        Args:
            logits: [P, U] of `words` at P positions.
            index: [M] position of each token.
            targets: [M] its id, a child of the position's node.
            competing: bool [P, U] of the positions' nodes (`competing`).
        """
        logits = logits.float()
        among = logits if competing is None else logits.masked_fill(~competing, -torch.inf)
        columns = torch.searchsorted(self.words_on(targets.device), targets)
        return logits[index, columns] - among.logsumexp(dim=-1)[index]

    def competing(self, nodes: Ints) -> Tensor | None:
        """Return bool [P, U], True for the children of each branching node; None: every word, as with one node."""
        if self._only_root:
            return None
        # The CSR lists of all nodes are scattered at once, without a loop over positions.
        counts = self._starts[nodes + 1] - self._starts[nodes]
        rows = np.repeat(np.arange(len(nodes)), counts)
        first = self._starts[nodes] - (np.cumsum(counts) - counts)
        out = np.zeros((len(nodes), len(self.words)), dtype=bool)
        out[rows, self._columns[np.arange(len(rows)) + first[rows]]] = True
        return torch.from_numpy(out)
