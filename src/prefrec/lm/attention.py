"""The attention that a model uses for a batch: its own, or oneDNN's in the place of `sdpa` on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefrec.lm.cpu.attention import ONEDNN
from prefrec.lm.cpu.linear import uses_onednn
from prefrec.lm.masks import FLEX, SDPA, attention_implementation, in_blocks, text_config
from prefrec.lm.packing import PackedBatch


@contextmanager
def fastest_attention(core: Any, batch: PackedBatch) -> Iterator[PackedBatch]:
    """Use oneDNN for `batch` inside this context where it replaces `sdpa`; yield the batch to pass to `core`.

    `core` is the transformers model, without adapters or wrappers, on the batch's device.
    """
    is_flex = batch.attention_mask.dim() == 4 and attention_implementation(core.config) == FLEX
    with quick_attention(core, batch.attention_mask):
        yield in_blocks(batch) if is_flex else batch


@contextmanager
def quick_attention(core: Any, mask: Tensor) -> Iterator[None]:
    """Replace `sdpa` by oneDNN inside this context, for masks [R, 1, Q, K], if the linear layers of `core` use it."""
    config, own = text_config(core.config), attention_implementation(core.config)
    by_name = getattr(core, "_supports_attention_backend", False)  # the model looks its attention up by name
    is_pairs = mask.dim() == 4 and mask.device.type == "cpu"
    can_replace = own == SDPA and by_name and is_pairs and compute_dtype(core, mask.device) == torch.float32
    config._attn_implementation = ONEDNN if can_replace and uses_onednn(core) else own
    try:
        yield
    finally:
        # Gradient checkpointing runs the layers again after this context, which must then use the same attention.
        runs_again = (getattr(module, "gradient_checkpointing", False) for module in core.modules())
        if not (torch.is_grad_enabled() and any(runs_again)):
            config._attn_implementation = own


def compute_dtype(core: Any, device: torch.device) -> torch.dtype:
    """Return the type that a model computes in: autocast's, or its own."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else core.dtype
