"""LoRA's layers by oneDNN: the adapter's part is added while it is multiplied, and scaled where it is narrow.

PEFT makes a matrix as large as the layer's output to scale it, and another to add it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.lm.cpu.linear import OneDNNLinear, is_ours, multiply, outer, quicken


def quicken_adapted(model: nn.Module) -> None:
    """`prefrec.lm.cpu.linear.quicken` for a model with adapters: LoRA's layers too."""
    quicken(model)
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is OneDNNLinear:
            module.__class__ = cast(Any, OneDNNLora)


class OneDNNLora(LoraLinear):
    """A linear layer with LoRA, whose sum is made by oneDNN where one plain adapter is on and nothing is dropped."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._only_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        layers = [base, down, up]
        fits = all(type(layer) is OneDNNLinear and not _is_watched(layer) for layer in layers)
        if (
            not fits
            or down.bias is not None
            or up.bias is not None
            or base.weight.requires_grad
            or not is_ours(x, *(layer.weight for layer in layers))
        ):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        out = _Lora.apply(rows, base.weight, base.bias, down.weight, up.weight, self.scaling[name])
        return out.view(*x.shape[:-1], -1)

    def _only_adapter(self) -> str | None:
        """The one adapter that is on; None where it is another number, or where PEFT does more than to add it."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant:
            return None
        dropout = self.lora_dropout[name]
        is_plain = isinstance(dropout, nn.Identity) or not dropout.training
        return name if is_plain else None


class _Lora(torch.autograd.Function):
    """[M, I], [O, I], [O], [r, I] and [O, r] give x · Wᵀ + b + scaling · x · Aᵀ · Bᵀ, [M, O]; W and b are frozen."""

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
    """Whether somebody has to be told when a layer is called, or changes what it takes and gives."""
    return bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


def _add_product(other: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """other + x · weightᵀ: [M, O], [M, I] and [O, I] give [M, O]."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
