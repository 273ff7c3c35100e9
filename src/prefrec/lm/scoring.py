"""The one function that scores answers: log-probabilities of choice sets under a language model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.lm.architectures import BRANCHING
from prefrec.lm.attention import quick_masks
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.head import restricted_head
from prefrec.lm.masks import FLEX, attention_implementation, in_blocks
from prefrec.lm.packing import PackedBatch

BLOCK_BYTES = 64 << 20
"""Bytes of logits in float32 at a time."""


def choice_logps(model: nn.Module, *passes: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probabilities of the answers, [B, C] in float32.

    Each is a sum over the answer's tokens, end token included, without a length penalty. Tokens compete with all
    others, or with those that continue to a title of a catalogue. Entries outside every `choice_mask` are −inf.
    Gradients flow to the model. There are no other effects: `prefrec.lm.scorer.ChoiceScorer` checks the layout.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        *passes: a batch from `prefrec.lm.packing.pack`, or all batches from `pack_passes`.
        within: the catalogue that the passes were packed with; None: among all tokens.
    """
    logps = sum_by_choice(answer_token_logps(model, passes[0], within), passes[0])
    for batch in passes[1:]:
        more = sum_by_choice(answer_token_logps(model, batch, within), batch)
        logps = torch.where(batch.choice_mask, more, logps)
    return logps


def answer_token_logps(model: nn.Module, batch: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probability of every answer token, [M] in float32 (M as in `PackedBatch`).

    Raise ValueError if the batch was not packed within this catalogue.
    """
    if (batch.nodes is None) != (within is None):
        raise ValueError("a batch must be scored within the catalogue that it was packed with")
    core = language_model(model)
    # Kept columns are passed as indices, which the model gathers into contiguous memory for one product. A number
    # would give a sliced view, which costs a copy of the head's weights for every row.
    kept, columns = _kept_columns(batch)
    inputs: dict[str, Any] = {"use_cache": False}
    if takes(core, "logits_to_keep"):
        inputs["logits_to_keep"] = kept
    else:
        columns = kept[columns]  # of all columns
    rows = batch.rows
    words = None if within is None else within.words.to(batch.targets.device)
    shaped = batch
    if _is_packed(batch):
        shaped = in_blocks(batch) if attention_implementation(core.config) == FLEX else batch
        masks = quick_masks(core, shaped.attention_mask, shaped.position_ids)
        inputs |= {"attention_mask": masks, "position_ids": shaped.position_ids}
    else:
        inputs["attention_mask"] = batch.attention_mask.long()
    with _head_at(model, rows, columns, words) as head:
        logits = model(input_ids=shaped.input_ids, **inputs).logits
    if head.index is not None:
        rows, columns = torch.zeros_like(rows), head.index
    if within is None or batch.nodes is None:
        return token_logps(logits, rows, columns, batch.targets)
    # Answers that branch at one node read the same position: its softmax is computed once.
    positions, index = torch.unique(rows * logits.shape[1] + columns, return_inverse=True)
    picked = logits.flatten(0, 1)[positions]
    nodes = torch.empty_like(positions).index_copy_(0, index, batch.nodes)
    return within.token_logps(picked if head.is_restricted else picked[:, words], nodes, index, batch.targets)


@dataclass
class _Head:
    """The form of the head's output in one call."""

    index: Tensor | None = None  # [M], each token's index among the positions passed to the head; None: all were
    is_restricted: bool = False  # the logits are those of some words only


@contextmanager
def _head_at(model: nn.Module, rows: Tensor, columns: Tensor, words: Tensor | None) -> Iterator[_Head]:
    """Pass only the needed positions to the head inside this context, each once, as one row [1, P].

    `rows` and `columns` [M] are the position of each token's logits. With `words` [U], token ids, the head computes
    only their logits, in float32. Compiled models, and models not known to call their head once on hidden states
    [R, K, D], are not changed.
    """
    core, out = language_model(model), _Head()

    def pick(hidden: Tensor) -> Tensor:
        positions, out.index = torch.unique(rows * hidden.shape[1] + columns, return_inverse=True)
        return hidden.flatten(0, 1)[positions][None]

    is_compiled = any("_orig_mod" in m._modules for m in model.modules())
    if core.config.model_type not in BRANCHING or is_compiled:
        yield out
        return
    with restricted_head(core.get_output_embeddings(), words, pick) as out.is_restricted:
        yield out


def token_logps(logits: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """Return the log-softmax of `logits` [R, K, V] at (rows, columns, targets), each [M]: [M] in float32.

    It is computed in blocks of positions, and again for the gradient, so only one block is in float32 at a time. A
    block has one position or at most `BLOCK_BYTES`. The gradient has the dtype of the logits.
    """
    kept, vocabulary = logits.shape[1:]
    size = max(1, BLOCK_BYTES // (4 * vocabulary))
    return _TokenLogps.apply(logits.reshape(-1, vocabulary), rows * kept + columns, targets, size)


class _TokenLogps(torch.autograd.Function):
    """The log-softmax of some rows of [P, V] at one column each, without a float32 copy of all rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positions: Tensor, targets: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(logits, positions, targets)
        ctx.size = size
        out = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        for block, tokens, index in _blocks(positions, size, len(logits)):
            logps = torch.log_softmax(logits[block], dim=-1, dtype=torch.float32)
            out[tokens] = logps[index, targets[tokens]]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        logits, positions, targets = ctx.saved_tensors
        out = None
        for block, tokens, index in _blocks(positions, ctx.size, len(logits)):
            # d log softmax(x)[t] / dx = onehot(t) − softmax(x), summed over the tokens of a position
            slope, grad = slopes[0][tokens], torch.softmax(logits[block], dim=-1, dtype=torch.float32)
            total = torch.zeros(len(grad), device=slope.device).index_add_(0, index, slope)
            # Answers may share a token at one position, so the slopes must add up.
            grad.mul_(-total[:, None]).index_put_((index, targets[tokens]), slope, accumulate=True)
            if len(grad) == len(logits):  # one block of all rows needs no second buffer
                return grad.to(logits.dtype), None, None, None
            out = torch.zeros_like(logits) if out is None else out
            out[block] = grad.to(logits.dtype)
        return torch.zeros_like(logits) if out is None else out, None, None, None


def _blocks(positions: Tensor, size: int, count: int) -> Iterator[tuple[Tensor | slice, Tensor, Tensor]]:
    """Yield at most `size` distinct positions at a time, the tokens [m] read there, and their index in the block."""
    different, index = torch.unique(positions, return_inverse=True)
    order = torch.argsort(index)
    starts = torch.arange(0, len(different) + size, size, device=positions.device)
    ends = torch.searchsorted(index[order], starts).tolist()
    for i, start in enumerate(range(0, len(different), size)):
        tokens = order[ends[i] : ends[i + 1]]
        block = slice(start, start + size)
        # If all positions are read, a slice is a view, where an index would copy the logits.
        yield block if len(different) == count else different[block], tokens, index[tokens] - start


def sum_by_choice(token_logps: Tensor, batch: PackedBatch) -> Tensor:
    """Return the answers' log-probabilities [B, C] from those of their tokens [M]; −inf where there is no answer."""
    sums = torch.zeros(batch.choice_mask.numel(), dtype=token_logps.dtype, device=token_logps.device)
    sums = sums.index_add(0, batch.choices, token_logps)
    return sums.view(batch.choice_mask.shape).masked_fill(~batch.choice_mask, -torch.inf)


def language_model(model: nn.Module) -> Any:
    """Return the transformers model inside adapters, compilation and wrappers for many processes."""
    while True:
        inner: Any = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and callable(base := getattr(model, "get_base_model", None)):
            inner = base()
        if inner is None:
            return model
        model = inner


def _is_packed(batch: PackedBatch) -> bool:
    return batch.attention_mask.dim() == 4


def _kept_columns(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the columns of the row that need logits, and each answer token's index [M] among them."""
    length = batch.input_ids.shape[1]
    first = length - batch.logits_to_keep
    if _is_packed(batch):
        return torch.arange(first, length, device=batch.columns.device), batch.columns
    # Rows start their answers at different columns, and not every column between the first and the last is needed.
    kept, columns = torch.unique(batch.columns + first, return_inverse=True)
    return kept, columns


def takes(model: nn.Module, argument: str) -> bool:
    """Return True if the model's forward has an argument of this name."""
    # Inspect the class, because accelerate wraps the forward of the instance.
    return argument in inspect.signature(type(model).forward).parameters
