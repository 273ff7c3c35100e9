"""Catalogue-constrained softmax: at each token, only the children of the title trie compete.

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
"""Where an answer's path branches: for each token with siblings, its index in the answer and the node before it."""


class CatalogueSoftmax:
    """The tokens that may follow each prefix of a catalogue's titles.

    Args:
        answers: token ids of every title, end token included. For training, use the items of the training log,
            because other items would only be pushed down. For scoring, use all items that may be queried.

    Attributes:
        branches: bool [M], True for trie nodes with several children.
        words: [U] ascending ids of all tokens with siblings, the only ones that need logits.
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
        """Return where the path of an answer (a title's tokens, or their beginning) branches.

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
        """Return the trie node where a title ends; raise ValueError if the title is not in the catalogue."""
        if self._terminals is None:
            self._terminals = {self.trie.path(n): n for n in np.unique(self.trie.terminals).tolist()}
        if (node := self._terminals.get(tuple(answer))) is None:
            raise self._unknown(tuple(answer))
        return node

    def _unknown(self, answer: tuple[int, ...]) -> ValueError:
        return ValueError(f"the answer {answer} is not in the catalogue of {len(self.trie.terminals)} titles")

    def cut(self, answer: Sequence[int]) -> tuple[int, ...]:
        """Return the answer up to its last branch. The remaining tokens are certain and need not be read."""
        route = self.route(answer)
        return tuple(answer[: route[-1][0] + 1 if route else 1])

    def words_on(self, device: torch.device) -> Tensor:
        """Return `words` on a device. They are copied there once."""
        if device not in self._words_on:
            self._words_on[device] = self.words.to(device)
        return self._words_on[device]

    def token_logps(self, logits: Tensor, index: Tensor, targets: Tensor, competing: Tensor | None) -> Tensor:
        """Return the log-probabilities [M], in float32, of tokens among the children of their nodes.

        Args:
            logits: [P, U] logits of `words` at P positions.
            index: [M] position of each token.
            targets: [M] id of each token, a child of its position's node.
            competing: bool [P, U] from `competing` for the positions' nodes.
        """
        logits = logits.float()
        among = logits if competing is None else logits.masked_fill(~competing, -torch.inf)
        columns = torch.searchsorted(self.words_on(targets.device), targets)
        # logits[index, columns] would be shorter, but its gradient depends on the order of threads (`take_rows`).
        chosen = logits.flatten().index_select(0, index * logits.shape[1] + columns)
        return chosen - among.logsumexp(dim=-1).index_select(0, index)

    def competing(self, nodes: Ints) -> Tensor | None:
        """Return bool [P, U], True for the children of each branching node; None if all words always compete."""
        if self._only_root:
            return None
        # The children of all nodes (CSR) are scattered at once, without a loop over positions.
        counts = self._starts[nodes + 1] - self._starts[nodes]
        rows = np.repeat(np.arange(len(nodes)), counts)
        first = self._starts[nodes] - (np.cumsum(counts) - counts)
        out = np.zeros((len(nodes), len(self.words)), dtype=bool)
        out[rows, self._columns[np.arange(len(rows)) + first[rows]]] = True
        return torch.from_numpy(out)
