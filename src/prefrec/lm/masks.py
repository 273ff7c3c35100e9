"""A packed batch's mask in the form that a model's layers and attention implementation take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from prefrec.lm.cpu.attention import ONEDNN
from prefrec.lm.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SDPA = "sdpa"
"""transformers' name for torch's attention."""

FLEX = "flex_attention"
"""transformers' name for FlexAttention, which skips the blocks of a mask in which nothing is seen."""

BLOCK = 128
"""Queries, and keys, of a block of FlexAttention."""

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

MASKED_LAYERS = frozenset({FULL, SLIDING, CHUNKED})
"""Kinds of layers in which a token is told apart from others by the mask alone."""

MASKED_ATTENTION = frozenset({SDPA, "eager", FLEX})
"""Attention implementations that take a mask of pairs of tokens."""

Mask = Tensor | BlockMask


def attention_masks(
    config: PretrainedConfig,
    allowed: Tensor,
    position_ids: Tensor,
    dtype: torch.dtype,
    implementation: str | None = None,
) -> Mask | dict[str, Mask]:
    """What to pass as `attention_mask`: one mask, or one for each kind of layer where a model mixes them.

    transformers takes a 4-D mask, and a dict of them by kind of layer, as given. A sliding window is therefore
    to be cut out of the mask here: a key is seen while it lies less than `sliding_window` positions back.
    Distances are measured in position ids, since answers that share a prompt lie further to the right than
    they are.

    Args:
        config: of the model.
        allowed: bool [R, 1, Q, K], True where a query (row of the matrix) may attend to a key (column).
            For `flex_attention` the queries that may attend to a key must lie side by side, as they do where
            answers, or the nodes of a trie in preorder, branch from a prompt.
        position_ids: [R, K] of the keys; the queries are the last Q of them.
        dtype: of the additive mask that eager attention takes.
        implementation: of the attention; None: as the configuration says.

    Returns:
        Masks [R, 1, Q, K]: bool for `sdpa`, 0 or the most negative number of `dtype` for `eager` (which would
        add a bool mask to its scores as 0 and 1), a `BlockMask` for `flex_attention`.
    """
    config = text_config(config)
    implementation = implementation or attention_implementation(config)
    masks: dict[str, Mask] = {}
    for kind in layer_kinds(config):
        if implementation == FLEX:
            masks[kind] = _block_mask(kind, config, allowed, position_ids)
            continue
        mask = _within_reach(kind, config, allowed, position_ids)
        masks[kind] = _additive(mask, dtype) if implementation == "eager" else mask
    return masks if len(masks) > 1 else masks.popitem()[1]


def in_blocks(batch: PackedBatch) -> PackedBatch:
    """A packed batch with rows of a multiple of `BLOCK` tokens: padding on the right, which sees itself alone.

    FlexAttention is compiled anew for lengths of another kind; so there are few. The logits to keep are further
    left by the padding.
    """
    length = batch.input_ids.shape[1]
    more = -length % BLOCK
    if not more:
        return batch
    allowed = F.pad(batch.attention_mask, (0, more, 0, more))
    allowed[:, :, range(length, length + more), range(length, length + more)] = True
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, more)),
        position_ids=F.pad(batch.position_ids, (0, more)),
        attention_mask=allowed,
        logits_to_keep=batch.logits_to_keep + more,
    )


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Kinds of the model's layers, in alphabetical order; names as in transformers' `layer_types`."""
    config = text_config(config)
    listed = getattr(config, "layer_types", None)
    if listed:
        return sorted(set(listed))
    everywhere = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return [SLIDING if everywhere else FULL]


def attention_implementation(config: PretrainedConfig) -> str:
    """Name of the attention implementation, `sdpa` where none is set or oneDNN stands in for it."""
    name = getattr(text_config(config), "_attn_implementation", None) or SDPA
    return SDPA if name == ONEDNN else name


def text_config(config: PretrainedConfig) -> Any:
    """The part of a configuration that is about the language model (all of it, in most)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _within_reach(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> Tensor:
    size = _reach(kind, config)
    if size is None or allowed.shape[-1] <= size:
        return allowed
    query, key = position_ids[:, None, -allowed.shape[-2] :, None], position_ids[:, None, None, :]
    return allowed & _near(kind, query, key, size)


def _reach(kind: str, config: Any) -> int | None:
    """Positions of a window, or of a chunk; None where all is in reach."""
    name = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind)
    return None if name is None else getattr(config, name)


def _near(kind: str, query: Tensor, key: Tensor, size: Any) -> Tensor:
    return query - key < size if kind == SLIDING else query // size == key // size


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)


def _block_mask(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> BlockMask:
    """A mask that FlexAttention's kernel reads off three vectors a row.

    The queries that may attend to a key are a run; of it the first and the number are kept, [R, K] each: for a
    token of the prompt from itself to the last answer's end, for one of an answer from itself to that answer's.
    """
    rows, _, queries, keys = allowed.shape
    first, ends = _runs(allowed)
    size, before = _reach(kind, config), keys - queries

    def branches(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= first[row, key]) & (query < ends[row, key])

    def branches_in_reach(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = _near(kind, position_ids[row, query + before], position_ids[row, key], size)
        return branches(row, head, query, key) & near

    rule = branches if size is None else branches_in_reach
    return create_block_mask(rule, rows, None, queries, keys, device=allowed.device, BLOCK_SIZE=BLOCK)


def _runs(allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The first query that may attend to each key, and the one after the last, [R, K]; alike where there is none."""
    sees = allowed[:, 0]
    first = sees.to(torch.uint8).argmax(dim=-2)
    return first, first + sees.sum(dim=-2)
