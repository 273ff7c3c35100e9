"""A packed batch's mask in the form that a model's layers and attention implementation take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

MASKED_LAYERS = frozenset({FULL, SLIDING, CHUNKED})
"""Kinds of layers in which a token is told apart from others by the mask alone."""

MASKED_ATTENTION = frozenset({"sdpa", "eager"})
"""Attention implementations that take a mask with an entry for each pair of tokens."""


def attention_masks(
    config: PretrainedConfig, allowed: Tensor, position_ids: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What to pass as `attention_mask`: one mask, or one for each kind of layer where a model mixes them.

    transformers takes a 4-D mask, and a dict of them by kind of layer, as given. A sliding window is therefore
    to be cut out of the mask here: a key is seen while it lies less than `sliding_window` positions back.
    Distances are measured in position ids, since answers that share a prompt lie further to the right than
    they are.

    Args:
        config: of the model.
        allowed: bool [R, 1, Q, K], True where a query (row of the matrix) may attend to a key (column).
        position_ids: [R, K] of the keys; the queries are the last Q of them.
        dtype: of the additive mask that eager attention takes.

    Returns:
        Masks [R, 1, Q, K]: bool for `sdpa`, 0 or the most negative number of `dtype` for `eager` (which would
        add a bool mask to its scores as 0 and 1).
    """
    config = text_config(config)
    masks = {}
    for kind in layer_kinds(config):
        mask = _within_reach(kind, config, allowed, position_ids)
        masks[kind] = _additive(mask, dtype) if attention_implementation(config) == "eager" else mask
    return masks if len(masks) > 1 else masks.popitem()[1]


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Kinds of the model's layers, in alphabetical order; names as in transformers' `layer_types`."""
    config = text_config(config)
    listed = getattr(config, "layer_types", None)
    if listed:
        return sorted(set(listed))
    everywhere = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return [SLIDING if everywhere else FULL]


def attention_implementation(config: PretrainedConfig) -> str:
    """Name of the attention implementation, `sdpa` where none is set."""
    return getattr(text_config(config), "_attn_implementation", None) or "sdpa"


def text_config(config: PretrainedConfig) -> Any:
    """The part of a configuration that is about the language model (all of it, in most)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _within_reach(kind: str, config: Any, allowed: Tensor, position_ids: Tensor) -> Tensor:
    reach = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind)
    if reach is None or allowed.shape[-1] <= (size := getattr(config, reach)):
        return allowed
    query, key = position_ids[:, None, -allowed.shape[-2] :, None], position_ids[:, None, None, :]
    near = query - key < size if kind == SLIDING else query // size == key // size
    return allowed & near


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)
