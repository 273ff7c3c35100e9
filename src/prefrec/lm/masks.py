"""Attention masks of packed batches, in the form that a model's layers and attention implementation expect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from prefrec.cpu.attention import ONEDNN
from prefrec.lm.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SDPA = "sdpa"
"""transformers' name of torch's scaled_dot_product_attention."""
FLEX = "flex_attention"
"""transformers' name of FlexAttention, which skips empty blocks of a mask."""
BLOCK = 128
"""Queries, and keys, per block of FlexAttention."""
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
MASKED_LAYERS = frozenset({FULL, SLIDING, CHUNKED})
"""Layer types in which only the mask determines which tokens interact."""
MASKED_ATTENTION = frozenset({SDPA, "eager", FLEX})
"""Attention implementations that accept a 4-D mask."""
Mask = Tensor | BlockMask


def attention_masks(
    config: PretrainedConfig, allowed: Tensor, position_ids: Tensor, dtype: torch.dtype
) -> Mask | dict[str, Mask]:
    """Return the `attention_mask` argument of a model: one mask, or a dict of masks by layer type.

    transformers uses a 4-D mask as it is, so sliding windows must be applied here. They are measured in position ids,
    because the columns of packed answers are larger than their positions.

    Masks [R, 1, Q, K] are bool for `sdpa`, additive in `dtype` for `eager` (which would add bools as 0 and 1 to its
    scores), and a `BlockMask` for `flex_attention`.

    Args:
        config: the model's configuration.
        allowed: bool [R, 1, Q, K], True where a query may attend to a key. For `flex_attention`, the queries that may
            attend to a key must be adjacent, as for answers or trie nodes (in preorder) that branch from a prompt.
            In a row that several choice sets share (`prefrec.lm.packing.alike`) they are not.
        position_ids: [R, K] position ids of the keys; the queries are the last Q of them.
        dtype: dtype of additive masks.
    """
    config = config.get_text_config()
    implementation = attention_implementation(config)
    masks: dict[str, Mask] = {}
    for kind in layer_kinds(config):
        if implementation == FLEX:
            masks[kind] = _block_mask(kind, config, allowed, position_ids)
            continue
        masks[kind] = mask = _within_reach(kind, config, allowed, position_ids)
        if implementation == "eager":
            # Not −inf: a query that attends to nothing would give NaN, which spreads to the gradients.
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            masks[kind] = zeros.masked_fill_(~mask, torch.finfo(dtype).min)
    return masks if len(masks) > 1 else masks.popitem()[1]


def in_blocks(batch: PackedBatch) -> PackedBatch:
    """Pad the rows of a packed batch on the right to a multiple of `BLOCK` tokens.

    FlexAttention is recompiled for every new length, so there should be few lengths.
    """
    length = batch.input_ids.shape[1]
    more = -length % BLOCK
    if not more:
        return batch
    allowed = F.pad(batch.attention_mask, (0, more, 0, more))
    # Padding attends to itself: the softmax over nothing would be NaN.
    allowed[:, :, range(length, length + more), range(length, length + more)] = True
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, more)),
        position_ids=F.pad(batch.position_ids, (0, more)),
        attention_mask=allowed,
        logits_to_keep=batch.logits_to_keep + more,
    )


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Return the distinct layer types of a model (transformers' `layer_types`), sorted."""
    config = config.get_text_config()
    if listed := getattr(config, "layer_types", None):
        return sorted(set(listed))
    everywhere = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return [SLIDING if everywhere else FULL]


def attention_implementation(config: PretrainedConfig) -> str:
    """Return the name of the attention implementation: `sdpa` also if none is set or oneDNN replaces it."""
    name = config.get_text_config()._attn_implementation or SDPA
    return SDPA if name == ONEDNN else name


def _within_reach(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> Tensor:
    size = _reach(kind, config)
    if size is None or allowed.shape[-1] <= size:
        return allowed
    query, key = position_ids[:, None, -allowed.shape[-2] :, None], position_ids[:, None, None, :]
    return allowed & _near(kind, query, key, size)


def _reach(kind: str, config: Any) -> int | None:
    """Return the size of windows or chunks in positions, or None for full attention."""
    name = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind)
    return None if name is None else getattr(config, name)


def _near(kind: str, query: Tensor, key: Tensor, size: Any) -> Tensor:
    return query - key < size if kind == SLIDING else query // size == key // size


def _block_mask(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> BlockMask:
    """Return a mask that FlexAttention's kernel computes from a few vectors per row, without an [R, Q, K] matrix.

    The queries that may attend to a key must be contiguous. In a row of one choice set they are: for a prompt token,
    from itself to the end of the last answer; for an answer token, from itself to the end of its answer. Only the
    first query and the end of this range are stored, [R, K] each; they are equal if no query may attend to the key.
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
