"""LoRA layers without the temporary matrices of PEFT.

PEFT allocates one matrix of the output's size to scale the adapter's part, and another one to add it; under autocast
it also casts the input to float32 and back. Here the low-rank product is scaled, and the addition is fused into the
second product. In float32 on a CPU, oneDNN computes this where it is faster.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.cpu.linear import OneDNNLinear, fits_onednn, multiply, outer, use_onednn

try:  # PEFT's layer for a 4-bit base exists only with bitsandbytes
    from peft.tuners.lora.bnb import Linear4bit
except ImportError:
    Linear4bit = None


def use_quick_lora(model: nn.Module) -> None:
    """Replace the LoRA layers of a model with adapters by faster ones, and apply `use_onednn` to its linear layers.

    Results and gradients equal PEFT's up to rounding. PEFT's code still runs where it does more than add one adapter.
    """
    use_onednn(model)
    for module in model.modules():
        if type(module) is LoraLinear:
            by_onednn = type(module.base_layer) is OneDNNLinear
            module.__class__ = cast(Any, OneDNNLora if by_onednn else NarrowLora)
        elif type(module) is Linear4bit:
            module.__class__ = cast(Any, NarrowLora4bit)


class _Narrow:
    """The forward pass of a LoRA layer that scales the low-rank product, for any device and any base layer."""

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
    """A LoRA layer on a 4-bit linear layer."""


class OneDNNLora(NarrowLora):
    """A LoRA layer computed by oneDNN if oneDNN supports its tensors (`fits_onednn`) and dropout is off."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else _only_adapter(self)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        layers = [base, down, up]
        fits = all(type(layer) is OneDNNLinear and not _is_watched(layer) for layer in layers)
        plain = down.bias is None and up.bias is None and not base.weight.requires_grad
        drops = not isinstance(self.lora_dropout[name], nn.Identity) and self.lora_dropout[name].training
        if drops or not (fits and plain and fits_onednn(x, *(layer.weight for layer in layers))):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        out = _Lora.apply(rows, base.weight, base.bias, down.weight, up.weight, self.scaling[name])
        return out.view(*x.shape[:-1], -1)


def _only_adapter(layer: Any) -> str | None:
    """Return the only active adapter; None if there is not exactly one, or if PEFT does more than adding it."""
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
