"""Log-probabilities of all titles of a catalogue: one pass over the prompt, then blocks of nodes of the title trie.

Titles branch from the prompt as in a packed row, and also from each other: a trie node attends to the prompt and its
ancestors. A prefix is read once, however many titles begin with it, and gives the probabilities of all its children.
Nodes without children are not read.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefrec.errors import check_finite
from prefrec.lm.architectures import layout_for
from prefrec.lm.attention import quick_masks
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.head import restricted_head
from prefrec.lm.layout import PIECE, agrees, probe_set, probe_words, relative_gap, tolerance
from prefrec.lm.scoring import language_model, takes, token_logps
from prefrec.lm.trie import ROOT, Ints, Trie
from prefrec.prompts import ChoiceSet

TrieLayout = Literal["cached", "repeated", "separate"]
"""Layouts of a trie.

`cached` reads the prompt once and keeps its keys and values. `repeated` reads the prompt again for every block.
`separate` reads one row of prompt and title tokens per path, for models that cannot branch.
"""

BLOCK_TOKENS = 1024
"""Nodes per block. All logits of a block are in memory at once."""

# Tokens per call in the separate layout.
_ROW_TOKENS = 1 << 13

# Number of answers whose text is used to check a layout.
_PROBED = 32


@torch.no_grad()
def catalogue_logps(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    *,
    layout: TrieLayout = "cached",
    block_tokens: int = BLOCK_TOKENS,
    within: CatalogueSoftmax | None = None,
) -> NDArray[np.float32]:
    """Return the log-probabilities [I] in nats of all answers of a trie after `prompt`, without gradient.

    They equal those of `choice_logps`.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        prompt: token ids, at least one.
        trie: trie of the answers' token ids, end token included.
        layout: layout from `trie_layout`.
        block_tokens: nodes per call; each block also contains the ancestors of its first node.
        within: restrict the softmax to this catalogue, which has the same trie. Default: all tokens.

    Raises:
        ModelError: a log-probability is not finite.
    """
    read = trie.inner if within is None else trie.with_ancestors(np.flatnonzero(within.branches))
    if layout == "cached" and len(read) <= block_tokens:
        layout = "repeated"  # one call reads everything, so caching the prompt would only add a second call
    reader = trie_reader(model, prompt, trie, layout, within)
    logps = np.zeros(len(trie))  # of each node's token given its prefix
    for start in range(0, len(read), block_tokens):
        _, children, values = children_logps(reader.at_prompt(), read[start : start + block_tokens])
        logps[children] = values
    return trie.sums_from_root(logps)[trie.terminals].astype(np.float32)


def trie_layout(model: nn.Module, prompt: Sequence[int], trie: Trie) -> tuple[TrieLayout, str]:
    """Return the fastest layout that is correct for a model, and the reason.

    Layouts that the configuration allows are tried on a few answers (`prefrec.lm.layout.probe_set`), `cached` before
    `repeated`, and must agree with one row per answer. Call this in the autocast context that the model will be used
    in later.

    Args:
        model: a causal language model, or a PEFT model around one.
        prompt: token ids of an example prompt.
        trie: trie of the answers.
    """
    core = language_model(model)
    known, reason = layout_for(core.config)
    if known == "separate":
        return known, reason
    probe = ChoiceSet(tuple(prompt), tuple(trie.path(n) for n in np.unique(trie.terminals)[:_PROBED].tolist()))
    layouts: tuple[TrieLayout, ...] = ("cached", "repeated")
    reason = f"a trie with model type {core.config.model_type!r}"
    for layout in layouts:
        is_right, comparison = agrees(partial(_gap, model, probe, layout), tolerance(model))
        reason += f"; {layout}: {comparison}"
        if is_right:
            return layout, reason
    return "separate", reason


@torch.no_grad()
def trie_reader(
    model: nn.Module, prompt: Sequence[int], trie: Trie, layout: TrieLayout, within: CatalogueSoftmax | None = None
) -> TrieReader:
    """Return a reader of `trie` after `prompt`. Raise ValueError if the prompt is empty."""
    if not len(prompt):
        raise ValueError("the prompt is empty")
    if layout == "separate":
        return _Separate(model, prompt, trie, within)
    return _Branching(model, prompt, trie, within, keep=layout == "cached")


def children_logps(reader: TrieReader, nodes: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return for each child of `nodes` the index of its parent in `nodes`, the child, and its log-probability.

    `nodes` are unread inner nodes in preorder. Raise ModelError if a log-probability is not finite.
    """
    which, children = reader.trie.children_of(nodes)
    tokens = torch.from_numpy(reader.trie.tokens[children])
    starts = np.searchsorted(which, np.arange(len(nodes) + 1))
    out, row = [], 0
    for logits in reader.next_logits(nodes):
        first, last = starts[row], starts[row + len(logits)]
        index, targets = torch.from_numpy(which[first:last] - row), tokens[first:last]
        if reader.within is None:
            part = token_logps(logits, index.to(logits.device), targets.to(logits.device))
        else:
            part = _logps_within(reader.within, logits, nodes[row : row + len(logits)], index, targets)
        out.append(part.double().cpu().numpy())
        row += len(logits)
    logps = np.concatenate(out)
    check_finite("the catalogue's titles", logps)
    return which, children, logps


def _logps_within(within: CatalogueSoftmax, logits: Tensor, nodes: Ints, index: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities [K] of children among their siblings; only children are certain and have 0."""
    branches = torch.from_numpy(within.branches[nodes])
    several, device = branches[index], logits.device
    positions = (branches.cumsum(0) - 1)[index[several]]
    competing = within.competing(nodes[branches.numpy()])
    inputs = (None if t is None else t.to(device) for t in (positions, targets[several], competing))
    out = torch.zeros(len(targets), device=device)
    out[several.to(device)] = within.token_logps(logits[branches.to(device)], *cast(Any, inputs))
    return out


class TrieReader(ABC):
    """A reader of trie nodes after one prompt, which returns the logits of the next token."""

    def __init__(self, model: nn.Module, prompt: Sequence[int], trie: Trie, within: CatalogueSoftmax | None) -> None:
        self.model = model
        self.core = language_model(model)
        self.device = next(model.parameters()).device
        self.prompt, self.trie, self.within = tuple(prompt), trie, within

    def at_prompt(self) -> Self:
        """Return an independent copy of this reader, with the same nodes read so far."""
        return copy.copy(self)

    @abstractmethod
    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        """Yield, in parts, the logits [n, V] of the token after each of `nodes`; [n, U] for `within.words`."""

    def _logits_at(self, ids: Tensor, columns: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Return the logits [R, n, V] at some columns of a call, or [R, n, U] for the words of the catalogue."""
        keeps = takes(self.core, "logits_to_keep")
        call = partial(self.model, input_ids=ids, **inputs, **({"logits_to_keep": columns} if keeps else {}))
        if self.within is None:
            logits = call().logits
        else:
            words = self.within.words_on(ids.device)
            with restricted_head(self.core.get_output_embeddings(), words) as is_restricted:
                logits = call().logits
            logits = logits if is_restricted else logits[..., words]
        return logits if keeps else logits[:, columns]


class _Branching(TrieReader):
    """A reader of nodes that branch from a prompt; a node attends to the prompt and its ancestors.

    The root is the prompt's last token. With `keep`, the keys and values of the tokens before it and of all nodes
    read so far are cached. Otherwise each call reads the prompt and the ancestors again.
    """

    def __init__(
        self, model: nn.Module, prompt: Sequence[int], trie: Trie, within: CatalogueSoftmax | None, *, keep: bool
    ) -> None:
        super().__init__(model, prompt, trie, within)
        self.keep = keep
        self.prefix = torch.tensor(prompt[:-1], dtype=torch.long)
        self.tokens = torch.from_numpy(trie.tokens.copy())
        self.tokens[ROOT] = prompt[-1]
        self.read: Ints = np.empty(0, dtype=np.int64)
        self.cache: Any = None
        if keep:
            from transformers import DynamicCache

            self.cache = DynamicCache()
        if keep and (n := len(self.prefix)):
            self._call(self.prefix, torch.arange(n), torch.ones(n, n, dtype=torch.bool).tril(), torch.tensor([n - 1]))

    def at_prompt(self) -> Self:
        other = super().at_prompt()
        if self.keep:
            # A shallow copy is enough: a cache layer grows by making new tensors, and does not change the old ones.
            other.cache = copy.copy(self.cache)
            other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return other

    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        new = np.setdiff1d(self.trie.with_ancestors(nodes), self.read, assume_unique=True)
        keys = np.concatenate([self.read, new])
        n, ids = len(self.prefix), self.tokens[torch.from_numpy(new)]
        sees = torch.ones(len(new), n + len(keys), dtype=torch.bool)
        # In preorder the nodes under `key` are key … ends[key] − 1, so this is True for a node and its ancestors.
        sees[:, n:] = torch.from_numpy((keys <= new[:, None]) & (new[:, None] < self.trie.ends[keys]))
        positions = torch.cat([torch.arange(n), n + torch.from_numpy(self.trie.depths[keys])])
        columns = torch.from_numpy(np.searchsorted(new, nodes))
        if self.keep:
            self.read = keys
        else:
            causal = torch.ones(n, sees.shape[1], dtype=torch.bool).tril()
            ids, sees, columns = torch.cat([self.prefix, ids]), torch.cat([causal, sees]), columns + n
        yield self._call(ids, positions, sees, columns)

    def _call(self, ids: Tensor, positions: Tensor, sees: Tensor, columns: Tensor) -> Tensor:
        """Return logits [n, V] at `columns` of Q tokens, given key `positions` [K] and the mask `sees` [Q, K]."""
        ids, positions, columns = (t.to(self.device) for t in (ids, positions, columns))
        allowed = sees.to(self.device)[None, None]
        inputs: dict[str, Any] = {
            "attention_mask": quick_masks(self.core, allowed, positions[None]),
            "position_ids": positions[None, -len(ids) :],
            "use_cache": self.keep,
        }
        if self.keep:
            inputs["cache" if takes(self.core, "cache") else "past_key_values"] = self.cache
        return self._logits_at(ids[None], columns, inputs)[0]


class _Separate(TrieReader):
    """A reader of one row per path, each with the prompt and padding on the right, without a cache."""

    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        # Only paths to the deepest nodes are read: they contain the logits of the nodes above.
        tips = nodes[np.append(nodes[1:] >= self.trie.ends[nodes[:-1]], True)]
        row_of = np.searchsorted(tips, nodes)
        longest = len(self.prompt) + int(self.trie.depths[tips].max())
        rows = max(1, _ROW_TOKENS // longest)
        for start in range(0, len(tips), rows):
            here = nodes[(row_of >= start) & (row_of < start + rows)]
            paths = [self.prompt + self.trie.path(n) for n in tips[start : start + rows].tolist()]
            columns = len(self.prompt) - 1 + self.trie.depths[here]
            yield self._call(paths, np.searchsorted(tips, here) - start, columns)

    def _call(self, paths: list[tuple[int, ...]], rows: Ints, columns: Ints) -> Tensor:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in paths], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(p), dtype=torch.long) for p in paths], batch_first=True)
        kept, index = torch.unique(torch.from_numpy(columns).to(self.device), return_inverse=True)
        inputs = {"attention_mask": mask.to(self.device), "use_cache": False}
        logits = self._logits_at(ids.to(self.device), kept, inputs)
        return logits[torch.from_numpy(rows).to(self.device), index]


@torch.no_grad()
def _gap(model: nn.Module, choice_set: ChoiceSet, layout: TrieLayout, compared: int) -> float:
    """Return the relative gap between a layout and separate rows, at the last nodes of a probe's trie."""
    probe = probe_set(choice_set, compared)
    trie = Trie.build(probe.answers)
    # Nodes that follow non-ancestors. On the first path, a plain causal mask would be right, too, and prove nothing.
    branched = trie.inner[trie.inner > trie.depths[trie.inner]]
    nodes = branched[-compared * (PIECE - 1) :]
    words = probe_words(model)

    def read(layout: TrieLayout, read_too: Ints) -> Tensor:
        logits = torch.cat(list(trie_reader(model, probe.prompt, trie, layout).next_logits(read_too)))
        return logits[torch.from_numpy(np.searchsorted(read_too, nodes))][:, words].float()

    return float(relative_gap(read(layout, trie.inner), read("separate", nodes)))
