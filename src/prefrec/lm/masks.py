"""Masks of packed batches in the form that a model's layers and attention implementation expect."""

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
"""transformers' name for FlexAttention, which skips empty blocks of a mask."""
BLOCK = 128
"""Queries (and keys) per block of FlexAttention."""
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
MASKED_LAYERS = frozenset({FULL, SLIDING, CHUNKED})
"""Kinds of layers in which only the mask decides which tokens interact."""
MASKED_ATTENTION = frozenset({SDPA, "eager", FLEX})
"""Attention implementations that take a mask of pairs of tokens."""
Mask = Tensor | BlockMask


def attention_masks(
    config: PretrainedConfig, allowed: Tensor, position_ids: Tensor, dtype: torch.dtype
) -> Mask | dict[str, Mask]:
    """Return the `attention_mask` argument: one mask, or a dict of masks by kind of layer if a model mixes them.

    transformers uses a given 4-D mask as it is, so sliding windows must be cut out of it here. They are measured in
    position ids, because packed answers are further to the right than their positions.

    Masks [R, 1, Q, K] are bool for `sdpa`, additive in `dtype` for `eager` (which would add bools as 0 and 1 to its
    scores), and a `BlockMask` for `flex_attention`.

    Args:
        allowed: bool [R, 1, Q, K], True where a query (row of the matrix) may attend to a key (column).
            For `flex_attention` the queries that may attend to a key must be adjacent, as they are for answers, or
            nodes of a trie in preorder, that branch from a prompt.
        position_ids: [R, K] of the keys; the queries are the last Q of them.
    """
    config = text_config(config)
    implementation = attention_implementation(config)
    masks: dict[str, Mask] = {}
    for kind in layer_kinds(config):
        if implementation == FLEX:
            masks[kind] = _block_mask(kind, config, allowed, position_ids)
            continue
        masks[kind] = mask = _within_reach(kind, config, allowed, position_ids)
        if implementation == "eager":
            # Not −inf: a query that sees nothing would get NaN, which spreads to the gradients.
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            masks[kind] = zeros.masked_fill_(~mask, torch.finfo(dtype).min)
    return masks if len(masks) > 1 else masks.popitem()[1]


def in_blocks(batch: PackedBatch) -> PackedBatch:
    """Return a packed batch whose rows are padded on the right to a multiple of `BLOCK` tokens.

    FlexAttention is compiled again for new lengths, so there should be few of them.
    """
    length = batch.input_ids.shape[1]
    more = -length % BLOCK
    if not more:
        return batch
    allowed = F.pad(batch.attention_mask, (0, more, 0, more))
    # Padding sees itself, or its softmax would be over nothing and NaN.
    allowed[:, :, range(length, length + more), range(length, length + more)] = True
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, more)),
        position_ids=F.pad(batch.position_ids, (0, more)),
        attention_mask=allowed,
        logits_to_keep=batch.logits_to_keep + more,
    )


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Return the kinds of the model's layers (transformers' `layer_types`) in alphabetical order."""
    config = text_config(config)
    listed = getattr(config, "layer_types", None)
    if listed:
        return sorted(set(listed))
    everywhere = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return [SLIDING if everywhere else FULL]


def attention_implementation(config: PretrainedConfig) -> str:
    """Return the attention implementation; `sdpa` if none is set or oneDNN replaces it."""
    name = getattr(text_config(config), "_attn_implementation", None) or SDPA
    return SDPA if name == ONEDNN else name


def text_config(config: PretrainedConfig) -> Any:
    """Return the language model's part of a configuration."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _within_reach(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> Tensor:
    size = _reach(kind, config)
    if size is None or allowed.shape[-1] <= size:
        return allowed
    query, key = position_ids[:, None, -allowed.shape[-2] :, None], position_ids[:, None, None, :]
    return allowed & _near(kind, query, key, size)


def _reach(kind: str, config: Any) -> int | None:
    """Return the positions per window or chunk, or None for full attention."""
    name = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind)
    return None if name is None else getattr(config, name)


def _near(kind: str, query: Tensor, key: Tensor, size: Any) -> Tensor:
    return query - key < size if kind == SLIDING else query // size == key // size


def _block_mask(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> BlockMask:
    """Return a mask that FlexAttention's kernel computes from vectors per row, without an [R, Q, K] matrix.

    The queries that may attend to a key are a run: for a prompt token from itself to the end of the last answer, for
    an answer token from itself to the end of its answer. Only the ends of these runs are kept, [R, K] each; they are
    equal if no query may attend.
    """
    rows, _, queries, keys = allowed.shape
    first = allowed[:, 0].to(torch.uint8).argmax(dim=-2)
    ends = first + allowed[:, 0].sum(dim=-2)
    size, before = _reach(kind, config), keys - queries

    def branches(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= first[row, key]) & (query < ends[row, key])

    def branches_in_reach(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = _near(kind, position_ids[row, query + before], position_ids[row, key], size)
        return branches(row, head, query, key) & near

    rule = branches if size is None else branches_in_reach
    return create_block_mask(rule, rows, None, queries, keys, device=allowed.device, BLOCK_SIZE=BLOCK)
