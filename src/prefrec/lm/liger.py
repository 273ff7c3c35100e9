"""Liger kernels for norms, gated layers and rotary embeddings on a GPU, if `liger-kernel` is installed."""

from __future__ import annotations

import torch
from torch import nn

KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Options of Liger. Losses are not replaced, because answers are scored from hidden states (`prefrec.lm.scoring`)."""


def use_liger(model: nn.Module, device: torch.device) -> None:
    """Replace elementwise layers of a model, with or without adapters, by Liger's kernels.

    Nothing changes on devices other than CUDA, without the package, or for architectures that it does not support.
    Rotary embeddings change for all models of the architecture in this process.
    """
    if device.type != "cuda":
        return
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if is_liger_kernel_available():
        apply_liger_kernel(model, KERNELS)
