"""The attention that a model uses for a mask: its own, or oneDNN's in the place of `sdpa` on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefrec.lm.cpu.attention import ONEDNN, read_by_onednn
from prefrec.lm.cpu.linear import uses_onednn
from prefrec.lm.masks import SDPA, Mask, attention_implementation, attention_masks, text_config


def quick_masks(core: Any, allowed: Tensor, position_ids: Tensor) -> Mask | dict[str, Mask]:
    """Return `prefrec.lm.masks.attention_masks` for `core`, and let oneDNN read them where it replaces `sdpa`.

    `core` is the transformers model, without adapters or wrappers. oneDNN does so on a CPU in float32, if the linear
    layers use it.
    """
    masks = attention_masks(core.config, allowed, position_ids, core.dtype)
    config = text_config(core.config)
    by_name = getattr(core, "_supports_attention_backend", False)  # the model looks its attention up by name
    is_sdpa = attention_implementation(config) == SDPA
    on_cpu = allowed.device.type == "cpu" and compute_dtype(core, allowed.device) == torch.float32
    if not torch.compiler.is_compiling() and is_sdpa and by_name and on_cpu and uses_onednn(core):
        # Other threads may be using the model, and gradient checkpointing runs its layers again later. So the name
        # stays. Under it, the model's own masks are read by sdpa as before.
        config._attn_implementation = ONEDNN
        for mask in masks.values() if isinstance(masks, dict) else [masks]:
            read_by_onednn(mask)
    return masks


def compute_dtype(core: Any, device: torch.device) -> torch.dtype:
    """Return the type that a model computes in: autocast's, or its own."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else core.dtype
