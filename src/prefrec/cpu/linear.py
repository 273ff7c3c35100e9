"""Linear layers in float32 on a CPU with oneDNN, where torch's MKL uses only half of the processor.

MKL does not use AVX-512 on processors that are not Intel's. oneDNN, which torch also contains, does, but torch passes
float32 matrices to it only if rounding to bfloat16 is allowed. The layers here pass them without rounding. Results
differ from MKL's only in the order of summation.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.errors import ConfigError
from prefrec.resources import processor_says

SWITCH = "PREFREC_LINEAR"
"""Environment variable: `torch` or `onednn` forces the library for linear layers and attention."""
BACKENDS = ("auto", "torch", "onednn")


def use_onednn(model: nn.Module) -> None:
    """Make the linear layers of a model use oneDNN if that is faster on this machine (`prefers_onednn`).

    Other dtypes and devices, `torch.func`, `torch.compile` and tracing still use torch. oneDNN's products have only
    first-order gradients and are invisible to torch's FLOP counter; `restore_linear` undoes the change. Layers added
    later, such as an adapter's, are not changed.
    """
    if prefers_onednn():
        _change(model, nn.Linear, OneDNNLinear)


def restore_linear(model: nn.Module) -> None:
    """Undo `use_onednn`."""
    _change(model, OneDNNLinear, nn.Linear)


def uses_onednn(model: nn.Module) -> bool:
    """Return True if the linear layers of `model` use oneDNN."""
    return prefers_onednn() and any(isinstance(module, OneDNNLinear) for module in model.modules())


def prefers_onednn() -> bool:
    """Return True if linear layers in float32 should use oneDNN on this machine.

    `PREFREC_LINEAR` decides. If it is not set, oneDNN is used where torch has MKL and the processor has AVX-512 but
    is not Intel's. `prefrec lab doctor` measures both. Raise ConfigError if the variable has an unknown value.
    """
    choice = os.environ.get(SWITCH) or "auto"
    if choice not in BACKENDS:
        raise ConfigError(f"{SWITCH}={choice}: expected one of {', '.join(BACKENDS)}")
    if choice == "torch" or not has_onednn():
        return False
    # A rule instead of a measurement: the choice changes the last digits, and a run must be reproducible.
    return choice == "onednn" or _mkl_holds_back()


def linear_backend() -> str:
    """Return `onednn` or `torch`: the library that computes float32 linear layers on this machine's CPU."""
    return "onednn" if prefers_onednn() else "torch"


@cache
def has_onednn() -> bool:
    """Return True if this torch has oneDNN's linear layer, both plain and with a fused addition."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return torch.backends.mkldnn.is_available() and hasattr(operator, "binary")


class OneDNNLinear(nn.Linear):
    """A linear layer that uses oneDNN in float32 on a CPU, also in the backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return _linear(input, self.weight, self.bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ computed by oneDNN, without gradient: [..., I] and [O, I] give [..., O]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ + bias as a layer after `use_onednn` computes it: [..., I], [O, I] and [O] give [..., O]."""
    return _linear(x, weight, bias) if prefers_onednn() else F.linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    # The reshape must stay outside: a view made inside an autograd function cannot be modified in place later.
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """A linear layer: [M, I], [O, I] and [O] give [M, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Only the weight's gradient needs the input; frozen layers need not keep it alive.
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        slope = slopes[0]
        by_x = multiply(slope, weight.t()) if ctx.needs_input_grad[0] else None
        by_weight = outer(slope, x) if ctx.needs_input_grad[1] else None
        by_bias = slope.sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Return leftᵀ · right: [M, O] and [M, I] give [O, I]."""
    # oneDNN is many times faster if the result has fewer rows than columns.
    if left.shape[1] <= right.shape[1]:
        return multiply(left.t(), right.t())
    return multiply(right.t(), left.t()).t()


def _change(model: nn.Module, before: type[nn.Linear], after: type[nn.Linear]) -> None:
    for module in model.modules():
        if type(module) is before:
            module.__class__ = cast(Any, after)


def fits_onednn(*tensors: Tensor) -> bool:
    """Return True if oneDNN supports these tensors: plain, float32, on a CPU and not empty."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return all(
        type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
        for x in tensors
    )


@cache
def _mkl_holds_back() -> bool:
    by_mkl = torch.backends.mkl.is_available()
    return by_mkl and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _maker()


def _maker() -> str:
    """Return the processor's maker, or "" if the system does not report it."""
    return processor_says("vendor_id") or platform.processor()  # on Windows it is the last word of the latter
