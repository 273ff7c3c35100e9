"""Linear layers in float32 on a CPU: by oneDNN where MKL, which torch takes, leaves half of the processor idle.

On processors of other makers than Intel, MKL multiplies without AVX-512, which they may have. torch carries oneDNN
beside it, which takes the instructions that are there, but gives it float32 matrices only where rounding to bfloat16
is allowed too. Here they are given to it as they are: the same numbers but for the order in which they are summed.
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

from prefrec.clock import processor_says
from prefrec.errors import ConfigError

SWITCH = "PREFREC_LINEAR"
"""Environment variable: `torch` leaves linear layers, and attention with them, to torch; `onednn` gives them to
oneDNN wherever it is there."""

WAYS = ("auto", "torch", "onednn")


def quicken(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply by oneDNN, where that is faster on this machine (`uses_onednn`).

    They do as torch does wherever their numbers are not in float32 on a CPU, and under `torch.func`, `torch.compile`
    and tracing. What oneDNN multiplies has gradients of the first order alone, and torch's counter of FLOPs does not
    see it: `slow_down` undoes it. Layers that are made later, as those of an adapter are, are not quickened by it.
    Where `prefrec.lm.scoring` and `prefrec.lm.catalogue` ask the model, its attention goes to oneDNN as well.
    """
    if uses_onednn():
        _change(model, nn.Linear, OneDNNLinear)


def slow_down(model: nn.Module) -> None:
    """Undo `quicken`."""
    _change(model, OneDNNLinear, nn.Linear)


def is_quick(model: nn.Module) -> bool:
    """Whether `model` has been quickened, and its numbers may go to oneDNN."""
    return uses_onednn() and any(isinstance(module, OneDNNLinear) for module in model.modules())


def uses_onednn() -> bool:
    """Whether linear layers in float32 go to oneDNN here.

    By `PREFREC_LINEAR`; where it is not set: torch multiplies by MKL, and the processor has AVX-512 and is not
    Intel's. A rule, not a measurement: which way is taken shows in the last digits, and a run is to give the same
    ones again. `prefrec doctor` measures both.

    Raises:
        ConfigError: the variable is set to something else.
    """
    asked = os.environ.get(SWITCH) or "auto"
    if asked not in WAYS:
        raise ConfigError(f"{SWITCH}={asked}: expected one of {', '.join(WAYS)}")
    if asked == "torch" or not has_onednn():
        return False
    return asked == "onednn" or _mkl_holds_back()


def way() -> str:
    """`onednn` or `torch`: what multiplies float32 matrices of linear layers on this machine's CPU."""
    return "onednn" if uses_onednn() else "torch"


@cache
def has_onednn() -> bool:
    """Whether this torch was built with oneDNN, and has its linear layer, alone and with a sum."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return hasattr(torch.ops.mkldnn._linear_pointwise, "binary")


class OneDNNLinear(nn.Linear):
    """A linear layer whose products in float32 on a CPU, those of its gradients too, are made by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        if not is_ours(input, self.weight):
            return super().forward(input)
        # Rows are taken together out here: a view that is made in there could not be changed in place.
        rows = _Linear.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
        return rows.view(*input.shape[:-1], self.out_features)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ by oneDNN, without a gradient: [..., I] and [O, I] give [..., O]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ as a quickened layer makes it, without a gradient: [..., I] and [O, I] give [..., O]."""
    if uses_onednn() and is_ours(x, weight):
        return multiply(x, weight)
    return F.linear(x, weight)


class _Linear(torch.autograd.Function):
    """[M, I], [O, I] and [O] give [M, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
    """leftᵀ · right, [M, O] and [M, I] give [O, I]; with the fewer columns as rows, which is many times faster."""
    if left.shape[1] <= right.shape[1]:
        return multiply(left.t(), right.t())
    return multiply(right.t(), left.t()).t()


def _change(model: nn.Module, before: type[nn.Linear], after: type[nn.Linear]) -> None:
    for module in model.modules():
        if type(module) is before:
            module.__class__ = cast(Any, after)


def is_ours(*tensors: Tensor) -> bool:
    """Whether oneDNN takes these tensors: plain float32 numbers on a CPU, at least one in each."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
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
    """The processor's maker, as it names itself; empty where the system does not say."""
    return processor_says("vendor_id") or platform.processor()  # of the latter, on Windows, the last word
