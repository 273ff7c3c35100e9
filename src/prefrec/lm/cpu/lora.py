"""LoRA layers by oneDNN, without the temporary matrices of PEFT.

PEFT makes one matrix of the output's size to scale the adapter's part and another to add it. Here the narrow product
is scaled, and oneDNN adds while it multiplies.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.lm.cpu.linear import OneDNNLinear, is_ours, multiply, outer, use_onednn


def use_onednn_lora(model: nn.Module) -> None:
    """Apply `prefrec.lm.cpu.linear.use_onednn` to a model with adapters, LoRA layers included."""
    use_onednn(model)
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is OneDNNLinear:
            module.__class__ = cast(Any, OneDNNLora)


class OneDNNLora(LoraLinear):
    """A LoRA layer computed by oneDNN if exactly one plain adapter is active and dropout is off."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._only_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        layers = [base, down, up]
        fits = all(type(layer) is OneDNNLinear and not _is_watched(layer) for layer in layers)
        plain = down.bias is None and up.bias is None and not base.weight.requires_grad
        if not (fits and plain and is_ours(x, *(layer.weight for layer in layers))):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        out = _Lora.apply(rows, base.weight, base.bias, down.weight, up.weight, self.scaling[name])
        return out.view(*x.shape[:-1], -1)

    def _only_adapter(self) -> str | None:
        """Return the only active adapter, or None if there is not exactly one, or PEFT does more than add it."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant:
            return None
        dropout = self.lora_dropout[name]
        is_plain = isinstance(dropout, nn.Identity) or not dropout.training
        return name if is_plain else None


class _Lora(torch.autograd.Function):
    """The product x · Wᵀ + b + scaling · x · Aᵀ · Bᵀ, [M, O], of [M, I], [O, I], [O], [r, I] and [O, r].

    W and b are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        narrow = multiply(x, down).mul_(scaling)
        ctx.save_for_backward(x if down.requires_grad else None, weight, down, up, narrow)
        ctx.scaling = scaling
        return _add_product(multiply(x, weight, bias), narrow, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, narrow = ctx.saved_tensors
        slope, by = slopes[0], ctx.needs_input_grad
        by_narrow = multiply(slope, up.t()).mul_(ctx.scaling)
        by_x = _add_product(multiply(slope, weight.t()), by_narrow, down.t()) if by[0] else None
        by_down = outer(by_narrow, x) if by[3] else None
        by_up = outer(slope, narrow) if by[4] else None
        return by_x, None, None, by_down, by_up, None


def _is_watched(layer: nn.Module) -> bool:
    """Return True if a layer has hooks, which a fused product would bypass."""
    return bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


def _add_product(other: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return other + x · weightᵀ: [M, O], [M, I] and [O, I] give [M, O]."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
