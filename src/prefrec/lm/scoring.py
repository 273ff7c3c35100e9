"""The one function that scores answers: log-probabilities of choice sets under a language model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.cpu.rows import take_rows
from prefrec.lm.architectures import BRANCHING
from prefrec.lm.attention import quick_masks
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.head import restricted_head
from prefrec.lm.masks import FLEX, attention_implementation, in_blocks
from prefrec.lm.packing import PackedBatch

BLOCK_BYTES = 64 << 20
"""Maximum bytes of float32 logits in memory at a time."""


def choice_logps(model: nn.Module, *passes: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probabilities [B, C] of answers in nats, in float32, with gradient.

    Each is the sum over the answer's tokens, end token included, without a length penalty. The softmax is over all
    tokens, or over those that continue to a title of a catalogue. Entries outside every `choice_mask` are −inf. The
    layout is not checked; `prefrec.lm.scorer.ChoiceScorer` does that.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        *passes: a batch from `prefrec.lm.packing.pack`, or all batches from `pack_passes`.
        within: the catalogue with which the passes were packed. Default: all tokens.

    Raises:
        ValueError: the passes were packed with another catalogue, or without one.
    """
    logps = sum_by_choice(answer_token_logps(model, passes[0], within), passes[0])
    for batch in passes[1:]:
        more = sum_by_choice(answer_token_logps(model, batch, within), batch)
        logps = torch.where(batch.choice_mask, more, logps)
    return logps


def answer_token_logps(model: nn.Module, batch: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probability of every answer token, [M] in float32 (M as in `PackedBatch`).

    Raise ValueError if the batch was packed with a catalogue and `within` is None, or the other way round.
    """
    if (batch.nodes is None) != (within is None):
        raise ValueError("a batch must be scored with the catalogue that it was packed with")
    core = language_model(model)
    inputs: dict[str, Any] = {"use_cache": False}
    shaped = batch
    if batch.attention_mask.dim() == 4:  # the packed layout
        shaped = in_blocks(batch) if attention_implementation(core.config) == FLEX else batch
        masks = quick_masks(core, shaped.attention_mask, shaped.position_ids)
        inputs |= {"attention_mask": masks, "position_ids": shaped.position_ids}
    else:
        inputs["attention_mask"] = batch.attention_mask.long()
    length, device = shaped.input_ids.shape[1], batch.targets.device
    first = length - shaped.logits_to_keep
    if takes(core, "logits_to_keep"):
        # Columns are passed as indices, which the model gathers into contiguous memory for one product. With a
        # number, the model would slice a view, which costs a copy of the head's weights for every row.
        inputs["logits_to_keep"], first = torch.arange(first, length, device=device), 0
    words = None if within is None else within.words_on(device)
    with _head_at(model, partial(_positions, batch, first), words) as (is_read_alone, is_restricted):
        logits = model(input_ids=shaped.input_ids, **inputs).logits
    read = None if is_read_alone else _positions(batch, first, logits.shape[1])
    logits = logits.flatten(0, 1)
    if within is None:
        return token_logps(logits, batch.positions, batch.targets, read)
    logits = logits if read is None else logits[read]
    logits = logits if is_restricted else logits[:, words]
    return within.token_logps(logits, batch.positions, batch.targets, batch.competing)


def _positions(batch: PackedBatch, first: int, kept: int) -> Tensor:
    """Return the flat indices [P], in rows of `kept` columns, of the positions whose logits are used.

    The batch's `columns` begin at column `first`.
    """
    return (batch.rows * kept + batch.columns + first)[batch.first_tokens]


@contextmanager
def _head_at(
    model: nn.Module, positions: Callable[[int], Tensor], words: Tensor | None
) -> Iterator[tuple[bool, bool]]:
    """Pass only the needed positions to the head inside this context, each once, as one row [1, P].

    Compiled models, and models that are not known to call their head once on hidden states, are not changed. Yield
    whether the logits are only those of the positions, and whether they are only those of the words.

    Args:
        positions: function of K that returns the needed positions [P] in hidden states [R, K, D], flattened.
        words: [U] token ids; only their logits are computed, in float32; None computes the logits of all words.
    """
    core = language_model(model)

    def pick(hidden: Tensor) -> Tensor:
        return take_rows(hidden.flatten(0, 1), positions(hidden.shape[1]))[None]

    is_compiled = torch.compiler.is_compiling() or any("_orig_mod" in m._modules for m in model.modules())
    if core.config.model_type not in BRANCHING or is_compiled:
        yield False, False
        return
    with restricted_head(core.get_output_embeddings(), words, pick) as is_restricted:
        yield True, is_restricted


def token_logps(logits: Tensor, index: Tensor, targets: Tensor, read: Tensor | None = None) -> Tensor:
    """Return the log-softmax of logits at M tokens: [M] in float32.

    It is computed in blocks of positions, and recomputed for the gradient, so only one block is in float32 at a time.
    A block has at most `BLOCK_BYTES`, but at least one position. The gradient has the dtype of the logits.

    Args:
        logits: [K, V] logits.
        index: [M] index of each token's position among the rows of `read`.
        targets: [M] id of each token.
        read: [P] rows of `logits` to use, each once. Default: all, in order.
    """
    return _TokenLogps.apply(logits, index, targets, read, max(1, BLOCK_BYTES // (4 * logits.shape[1])))


class _TokenLogps(torch.autograd.Function):
    """The log-softmax of some rows of [K, V] at one column each, without a float32 copy of all rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, targets: Tensor, read: Tensor | None, size: int) -> Tensor:
        ctx.save_for_backward(logits, index, targets, read)
        ctx.size = size
        out = torch.zeros(targets.shape, dtype=torch.float32, device=logits.device)
        for block, start in _blocks(logits, read, size):
            logps = torch.log_softmax(logits[block], dim=-1, dtype=torch.float32)
            row, is_here = _in_block(index, start, len(logps))
            out = torch.where(is_here, logps[row, targets], out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, index, targets, read = ctx.saved_tensors
        slope, out = slopes[0], None
        # d log softmax(x)[t] / dx = onehot(t) − softmax(x), summed over the tokens of a position
        total = torch.zeros(len(logits) if read is None else len(read), device=slope.device)
        total.index_add_(0, index, slope)
        for block, start in _blocks(logits, read, ctx.size):
            grad = torch.softmax(logits[block], dim=-1, dtype=torch.float32)
            row, is_here = _in_block(index, start, len(grad))
            # Answers may share a token at one position, so their gradients are accumulated.
            grad.mul_(-total[start : start + len(grad), None])
            grad.index_put_((row, targets), slope.masked_fill(~is_here, 0.0), accumulate=True)
            if len(grad) == len(logits) and read is None:  # one block of all rows needs no second buffer
                return grad.to(logits.dtype), None, None, None, None
            out = torch.zeros_like(logits) if out is None else out
            out[block] = grad.to(logits.dtype)
        return torch.zeros_like(logits) if out is None else out, None, None, None, None


def _blocks(logits: Tensor, read: Tensor | None, size: int) -> Iterator[tuple[Tensor | slice, int]]:
    """Yield blocks of at most `size` rows of `logits`, each with the number of rows before it."""
    for start in range(0, len(logits) if read is None else len(read), size):
        block = slice(start, start + size)
        # If all positions are used, a slice is a view; an index would copy the logits.
        yield block if read is None else read[block], start


def _in_block(index: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return each token's row [M] in a block, and whether it is in this block; if not, the row is meaningless."""
    # All tokens are looked up in every block: selecting some would make a GPU wait for their number.
    row = index - start
    return row.clamp(0, size - 1), (row >= 0) & (row < size)


def sum_by_choice(token_logps: Tensor, batch: PackedBatch) -> Tensor:
    """Sum the log-probabilities [M] of tokens by answer: [B, C], −inf where there is no answer."""
    sums = torch.zeros(batch.choice_mask.numel(), dtype=token_logps.dtype, device=token_logps.device)
    sums = sums.index_add(0, batch.choices, token_logps)
    return sums.view(batch.choice_mask.shape).masked_fill(~batch.choice_mask, -torch.inf)


def language_model(model: nn.Module) -> Any:
    """Return the transformers model inside adapters, compilation and wrappers for several processes."""
    while True:
        inner: Any = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and callable(base := getattr(model, "get_base_model", None)):
            inner = base()
        if inner is None:
            return model
        model = inner


def takes(model: nn.Module, argument: str) -> bool:
    """Return True if the model's forward has an argument of this name."""
    # The class is inspected, because accelerate wraps the forward of the instance.
    return argument in inspect.signature(type(model).forward).parameters
