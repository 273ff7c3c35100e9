"""LoRA layers without the temporary matrices of PEFT.

PEFT makes one matrix of the output's size to scale the adapter's part, and another to add it; under autocast it also
turns the input into float32 and back. Here the narrow product is scaled, and the wide one adds while it multiplies.
In float32 on a CPU this is done by oneDNN where that is faster.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.lm.cpu.linear import OneDNNLinear, is_ours, multiply, outer, use_onednn

try:  # PEFT's layer on a base in 4 bits is only there with bitsandbytes
    from peft.tuners.lora.bnb import Linear4bit
except ImportError:
    Linear4bit = None


def use_quick_lora(model: nn.Module) -> None:
    """Make the LoRA layers of a model with adapters quick, and its linear layers by `use_onednn`.

    Numbers and gradients are those of PEFT, to rounding. Where PEFT does more than add one adapter, it still does.
    """
    use_onednn(model)
    for module in model.modules():
        if type(module) is LoraLinear:
            by_onednn = type(module.base_layer) is OneDNNLinear
            module.__class__ = cast(Any, OneDNNLora if by_onednn else NarrowLora)
        elif type(module) is Linear4bit:
            module.__class__ = cast(Any, NarrowLora4bit)


class _Narrow:
    """The forward pass of a LoRA layer that scales the narrow product, for any device and any base layer."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else _only_adapter(self)
        if name is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        down, up = self.lora_A[name], self.lora_B[name]
        mixed = x.dtype != down.weight.dtype and not torch.is_autocast_enabled(x.device.type)
        if mixed or _is_watched(up) or down.bias is not None or up.bias is not None:
            return super().forward(x)  # type: ignore[misc]
        narrow = down(self.lora_dropout[name](x)) * self.scaling[name]
        out = self.base_layer(x)
        rows = torch.addmm(out.reshape(-1, out.shape[-1]), narrow.reshape(-1, narrow.shape[-1]), up.weight.t())
        return rows.view(*x.shape[:-1], -1)


class NarrowLora(_Narrow, LoraLinear):
    """A LoRA layer on a plain linear layer."""


class NarrowLora4bit(_Narrow, Linear4bit or LoraLinear):  # type: ignore[misc]
    """A LoRA layer on a linear layer in 4 bits."""


class OneDNNLora(NarrowLora):
    """A LoRA layer computed by oneDNN, where its layers are (`prefrec.lm.cpu.linear.is_ours`) and dropout is off."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else _only_adapter(self)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        layers = [base, down, up]
        fits = all(type(layer) is OneDNNLinear and not _is_watched(layer) for layer in layers)
        plain = down.bias is None and up.bias is None and not base.weight.requires_grad
        drops = not isinstance(self.lora_dropout[name], nn.Identity) and self.lora_dropout[name].training
        if drops or not (fits and plain and is_ours(x, *(layer.weight for layer in layers))):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        out = _Lora.apply(rows, base.weight, base.bias, down.weight, up.weight, self.scaling[name])
        return out.view(*x.shape[:-1], -1)


def _only_adapter(layer: Any) -> str | None:
    """Return the only active adapter, or None if there is not exactly one, or PEFT does more than add it."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    return None if name not in layer.lora_A or name in layer.lora_variant else name


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
