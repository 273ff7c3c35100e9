"""Choose the attention of a model: its own, or on a CPU oneDNN's in place of `sdpa`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefrec.cpu.attention import ONEDNN, read_by_onednn, register
from prefrec.cpu.linear import uses_onednn
from prefrec.lm.masks import SDPA, Mask, attention_implementation, attention_masks


def quick_masks(core: Any, allowed: Tensor, position_ids: Tensor) -> Mask | dict[str, Mask]:
    """Return the attention masks of a call, and let oneDNN replace `sdpa` where it is faster.

    This is on a CPU in float32, if the linear layers use oneDNN, too.

    Args:
        core: the transformers model, without adapters or wrappers.
        allowed, position_ids: as in `prefrec.lm.masks.attention_masks`.
    """
    masks = attention_masks(core.config, allowed, position_ids, core.dtype)
    by_name = getattr(core, "_supports_attention_backend", False)  # the model looks up its attention by name
    is_sdpa = attention_implementation(core.config) == SDPA
    on_cpu = allowed.device.type == "cpu" and compute_dtype(core, allowed.device) == torch.float32
    if not torch.compiler.is_compiling() and is_sdpa and by_name and on_cpu and uses_onednn(core):
        # Other threads may be using the model, and gradient checkpointing runs its layers again later, so this
        # setting is not undone. With it, masks that the model makes itself still go to sdpa.
        register()
        core.config.get_text_config()._attn_implementation = ONEDNN
        for mask in masks.values() if isinstance(masks, dict) else [masks]:
            read_by_onednn(mask)
    return masks


def compute_dtype(core: Any, device: torch.device) -> torch.dtype:
    """Return the dtype that a model computes in: that of autocast, or its own."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else core.dtype
