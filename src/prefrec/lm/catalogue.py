"""Log-probabilities of a whole catalogue: one pass over the prompt, and one over the trie of the titles in blocks.

The answers branch from one prompt as they do in a packed row, and from one another: a node of their trie sees the
prompt and its ancestors. Every prefix is thus read once, however many titles begin with it, and each gives the
probabilities of all its children. Of the trie only nodes with children are read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from prefrec.errors import ModelError
from prefrec.lm.attention import quick_attention
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.masks import attention_masks
from prefrec.lm.scoring import (
    PIECE,
    doubted,
    language_model,
    layout_for,
    probe_of,
    probe_words,
    restricted_head,
    takes,
    token_logps,
    tolerance,
    unlikeness,
)
from prefrec.lm.trie import ROOT, Ints, Trie
from prefrec.prompts import ChoiceSet

TrieLayout = Literal["cached", "repeated", "separate"]
"""How a model reads a trie.

`cached`: the prompt once, its keys and values kept for every block. `repeated`: the prompt anew in front of every
block. `separate`: one row of prompt and titles' tokens for each path, for models that cannot branch.
"""

BLOCK_TOKENS = 1024
"""Nodes of a block; their logits are held at once."""

_ROW_TOKENS = 1 << 13
"""Tokens of a call in the separate layout."""

_PROBED = 32
"""Answers whose text the check of a layout reads."""


def catalogue_logps(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    *,
    layout: TrieLayout = "cached",
    block_tokens: int = BLOCK_TOKENS,
    within: CatalogueSoftmax | None = None,
) -> NDArray[np.float32]:
    """Return log-probabilities [I] of all answers of a trie after `prompt`; those of `choice_logps`, no gradient.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        prompt: token ids, at least one.
        trie: of the answers' token ids, end token included.
        layout: from `trie_layout`.
        block_tokens: nodes a call; each block also holds the ancestors of its first node.
        within: the catalogue, whose trie this is, in which the answers are scored; None: among all tokens.

    Raises:
        ModelError: a log-probability is no finite number.
    """
    logps = trie.sums_from_root(_node_logps(model, prompt, trie, layout, block_tokens, within))
    return logps[trie.terminals].astype(np.float32)


def trie_layout(model: nn.Module, prompt: Sequence[int], trie: Trie) -> tuple[TrieLayout, str]:
    """The fastest layout that is right for a model, and why.

    What the configuration rules out is not tried. The rest is tried on a few answers made of the text
    (`prefrec.lm.scoring.probe_of`), `cached` before `repeated`, and must agree with one row an answer. Call it in the
    autocast context that the model is to be used in.
    """
    core = language_model(model)
    known, reason = layout_for(core.config)
    if known == "separate":
        return known, reason
    name = repr(core.config.model_type)
    some = ChoiceSet(tuple(prompt), tuple(trie.path(n) for n in np.unique(trie.terminals)[:_PROBED].tolist()))
    most = tolerance(core, next(model.parameters()).device)
    reasons = []
    layouts: tuple[TrieLayout, ...] = ("cached", "repeated")
    for layout in layouts:
        try:
            gap = doubted(partial(_gap, model, some, layout), most)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as e:
            reasons.append(f"{layout}: {type(e).__name__}: {e}")
            continue
        if gap <= most:
            how = f"{layout}, to {gap:.1e} of the logits' spread"
            return layout, "; ".join([f"model type {name} reads a trie ({how})", *reasons])
        reasons.append(f"{layout}: other scores than separate rows, by {gap:.2g} of the logits' spread")
    return "separate", f"model type {name} reads no trie ({'; '.join(reasons)})"


class TrieReader(Protocol):
    """Reads nodes of a trie behind one prompt, and says what may come next."""

    trie: Trie
    within: CatalogueSoftmax | None

    def at_prompt(self) -> TrieReader:
        """A reader that has read what this one has; what either reads from now on, the other has not read."""
        ...

    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        """Logits [n, V] of the token after each of `nodes`, or [n, U] of `within.words`, in one or more parts.

        Args:
            nodes: inner nodes in preorder that have not been read.
        """
        ...


def trie_reader(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    layout: TrieLayout,
    within: CatalogueSoftmax | None = None,
) -> TrieReader:
    """Return what reads the nodes of `trie` after `prompt` in a layout.

    Raises:
        ValueError: the prompt is empty.
    """
    if not len(prompt):
        raise ValueError("the prompt is empty")
    if layout == "separate":
        return _Separate(model, prompt, trie, within)
    return _Branching(model, prompt, trie, within, keep=layout == "cached")


def children_logps(reader: TrieReader, nodes: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """For each child of `nodes`: the index of its parent in `nodes`, the child, and its log-probability there.

    Args:
        reader: from `trie_reader`.
        nodes: inner nodes in preorder that the reader has not read.

    Raises:
        ModelError: a log-probability is no finite number.
    """
    which, children = reader.trie.children_of(nodes)
    tokens = torch.from_numpy(reader.trie.tokens[children])
    starts = np.searchsorted(which, np.arange(len(nodes) + 1))
    out, row = [], 0
    for logits in reader.next_logits(nodes):
        first, last = starts[row], starts[row + len(logits)]
        index, targets = torch.from_numpy(which[first:last] - row).to(logits.device), tokens[first:last]
        targets = targets.to(logits.device)
        if reader.within is None:
            logps = token_logps(logits[None], torch.zeros_like(index), index, targets)
        else:
            logps = _logps_within(reader.within, logits, nodes[row : row + len(logits)], index, targets)
        out.append(logps.double().cpu().numpy())
        row += len(logits)
    found = np.concatenate(out)
    check_finite("the catalogue's titles", found)
    return which, children, found


def _logps_within(within: CatalogueSoftmax, logits: Tensor, nodes: Ints, index: Tensor, targets: Tensor) -> Tensor:
    """Return log-probabilities [K] of children among their siblings; 0 where a child has none."""
    branches = torch.from_numpy(within.branches[nodes]).to(logits.device)
    several = branches[index]
    out = torch.zeros(len(targets), device=logits.device)
    places = torch.cumsum(branches, 0) - 1
    some = torch.from_numpy(nodes).to(logits.device)[branches]
    out[several] = within.token_logps(logits[branches], some, places[index[several]], targets[several])
    return out


def check_finite(of: str, *logps: NDArray[Any]) -> None:
    """See that log-probabilities are numbers: what is no number is in no order.

    Raises:
        ModelError: one is NaN or infinite.
    """
    if not all(np.isfinite(some).all() for some in logps):
        raise ModelError(f"{of}: a log-probability is no finite number; use another dtype, or train again")


class _Branching:
    """Reads nodes that branch from a prompt: a node sees the prompt and its ancestors.

    The prompt's last token is the root's own. With `keep` the keys and values of the tokens before it, and of all
    nodes that have been read, stay; without, prompt and ancestors are read again in each call.
    """

    def __init__(
        self, model: nn.Module, prompt: Sequence[int], trie: Trie, within: CatalogueSoftmax | None, *, keep: bool
    ) -> None:
        self.within = within
        self.model, self.core, self.trie, self.keep = model, language_model(model), trie, keep
        self.device = next(model.parameters()).device
        self.prefix = torch.tensor(prompt[:-1], dtype=torch.long)
        self.tokens = _with_root(trie, prompt)
        self.read: Ints = np.empty(0, dtype=np.int64)
        self.cache = DynamicCache() if keep else None
        if keep and len(self.prefix):
            n = len(self.prefix)
            self._call(self.prefix, torch.arange(n), torch.ones(n, n, dtype=torch.bool).tril(), torch.tensor([n - 1]))

    def at_prompt(self) -> _Branching:
        other = copy.copy(self)
        if self.cache is not None:
            # A layer that grows takes new tensors: those of the prompt are shared and stay as they are.
            other.cache = copy.copy(self.cache)
            other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return other

    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        new = np.setdiff1d(self.trie.with_ancestors(nodes), self.read, assume_unique=True)
        keys = np.concatenate([self.read, new])
        n, ids = len(self.prefix), self.tokens[torch.from_numpy(new)]
        sees = torch.ones(len(new), n + len(keys), dtype=torch.bool)
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
        """Logits [n, V] at `columns` of Q tokens; `positions` [K] are those of the keys, `sees` [Q, K] the mask."""
        ids, positions, columns = (t.to(self.device) for t in (ids, positions, columns))
        allowed = sees.to(self.device)[None, None]
        inputs: dict[str, Any] = {
            "attention_mask": attention_masks(self.core.config, allowed, positions[None], self.core.dtype),
            "position_ids": positions[None, -len(ids) :],
            "use_cache": self.keep,
        }
        if self.keep:
            inputs["cache" if takes(self.core, "cache") else "past_key_values"] = self.cache
        with quick_attention(self.core, allowed):
            return _logits_at(self.model, self.core, ids[None], columns, inputs, self.within)[0]


class _Separate:
    """Reads paths of the trie one a row, each behind the prompt, padded on the right; it keeps nothing."""

    def __init__(self, model: nn.Module, prompt: Sequence[int], trie: Trie, within: CatalogueSoftmax | None) -> None:
        self.within = within
        self.model, self.core, self.trie = model, language_model(model), trie
        self.device = next(model.parameters()).device
        self.prompt = tuple(prompt)

    def at_prompt(self) -> _Separate:
        return self

    def next_logits(self, nodes: Ints) -> Iterator[Tensor]:
        tips = nodes[np.append(nodes[1:] >= self.trie.ends[nodes[:-1]], True)]  # with none of the others below
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
        logits = _logits_at(self.model, self.core, ids.to(self.device), kept, inputs, self.within)
        return logits[torch.from_numpy(rows).to(self.device), index]


@torch.no_grad()
def _node_logps(
    model: nn.Module,
    prompt: Sequence[int],
    trie: Trie,
    layout: TrieLayout,
    block_tokens: int,
    within: CatalogueSoftmax | None,
) -> NDArray[np.float64]:
    """Return [M] the log-probability of each node's token after the tokens before it; 0 at the root."""
    reader = trie_reader(model, prompt, trie, layout, within)
    read = trie.inner if within is None else trie.with_ancestors(np.flatnonzero(within.branches))
    out = np.zeros(len(trie))
    for start in range(0, len(read), block_tokens):
        nodes = read[start : start + block_tokens]
        _, children, logps = children_logps(reader.at_prompt(), nodes)
        out[children] = logps
    return out


@torch.no_grad()
def _gap(model: nn.Module, choice_set: ChoiceSet, layout: TrieLayout, compared: int) -> float:
    """Unlikeness of what a layout reads of a probe's trie and of separate rows, at its last nodes."""
    probe = probe_of(choice_set, compared)
    trie = Trie.build(probe.answers)
    branched = trie.inner[trie.inner > trie.depths[trie.inner]]  # nodes that lie behind others than their ancestors
    nodes = branched[-compared * (PIECE - 1) :]
    words = probe_words(language_model(model))

    def read(layout: TrieLayout, read_too: Ints) -> Tensor:
        logits = torch.cat(list(trie_reader(model, probe.prompt, trie, layout).next_logits(read_too)))
        return logits[torch.from_numpy(np.searchsorted(read_too, nodes))][:, words].float()

    return float(unlikeness(read(layout, trie.inner), read("separate", nodes)))


def _logits_at(
    model: nn.Module,
    core: Any,
    ids: Tensor,
    columns: Tensor,
    inputs: dict[str, Any],
    within: CatalogueSoftmax | None,
) -> Tensor:
    """Return logits [R, n, V] at some columns of a call, or [R, n, U] of the words of a catalogue."""
    keeps = takes(core, "logits_to_keep")
    call = partial(model, input_ids=ids, **inputs, **({"logits_to_keep": columns} if keeps else {}))
    if within is None:
        logits = call().logits
    else:
        words = within.words.to(ids.device)
        with restricted_head(core.get_output_embeddings(), words) as is_restricted:
            logits = call().logits
        logits = logits if is_restricted else logits[..., words]
    return logits if keeps else logits[:, columns]


def _with_root(trie: Trie, prompt: Sequence[int]) -> Tensor:
    """The nodes' tokens, the root's being the prompt's last."""
    tokens = trie.tokens.copy()
    tokens[ROOT] = prompt[-1]
    return torch.from_numpy(tokens)
