"""Replace what a language model's head computes, for one call and one thread.

A model is called together with its wrappers, because their hooks sum gradients (DDP) and gather weights (FSDP), and
some models scale their logits after the head. The replacement is therefore passed in a context variable, which is
invisible to other threads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Lock
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrec.cpu.linear import OneDNNLinear

Forward = Callable[[Tensor], Tensor]
"""Hidden states [..., D] → logits [..., V]."""
_replaced: ContextVar[tuple[nn.Module, Forward] | None] = ContextVar("replaced", default=None)
_installing = Lock()


class _Switch:
    """The forward of a head whose result can be replaced: this thread's replacement, or the original forward."""

    def __init__(self, head: nn.Module, original: Forward | None) -> None:
        # A strong reference would be a cycle, which keeps a model in memory until the next garbage collection.
        self._head = weakref.ref(head)
        self._original = original

    def __reduce__(self) -> Any:
        return type(self), (self._head(), self._original)

    def __call__(self, hidden: Tensor) -> Tensor:
        replaced = None if torch.compiler.is_compiling() else _replaced.get()
        return self.original(hidden) if replaced is None or replaced[0] is not self._head() else replaced[1](hidden)

    def original(self, hidden: Tensor) -> Tensor:
        """Return the result of the original forward."""
        head = cast(Any, self._head())
        return cast(Tensor, type(head).forward(head, hidden) if self._original is None else self._original(hidden))


@contextmanager
def replaced_head(head: nn.Module, forward: Forward) -> Iterator[None]:
    """Let a head compute `forward` inside this context, in this thread only."""
    _original(head)
    token = _replaced.set((head, forward))
    try:
        yield
    finally:
        _replaced.reset(token)


@contextmanager
def restricted_head(
    head: nn.Module, words: Tensor | None, pick: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Iterator[bool]:
    """Restrict a head to the logits of some words, in float32, inside this context and thread.

    Yield False if the head computes all words nevertheless: `words` is None, or the head is neither a linear layer
    nor has a method `logits_of(hidden, words)`, such as an adapted or quantised head.

    Args:
        words: [U] token ids; logits [..., U] are in their order.
        pick: selects the hidden states for which logits are computed.
    """
    whole, original = cast(Any, head), _original(head)
    is_restricted = words is not None and (hasattr(head, "logits_of") or type(head) in (nn.Linear, OneDNNLinear))

    def forward(hidden: Tensor) -> Tensor:
        hidden = pick(hidden)
        if not is_restricted:
            return original(hidden)
        # Autocast would round the logits to bfloat16, which makes titles with close scores equal.
        kind = hidden.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            if hasattr(whole, "logits_of"):
                return cast(Tensor, whole.logits_of(hidden.float(), words))
            bias = None if whole.bias is None else whole.bias[words].float()
            return F.linear(hidden.float(), whole.weight[words].float(), bias)

    with replaced_head(head, forward):
        yield is_restricted


def _original(head: nn.Module) -> Forward:
    """Return a head's original forward, after installing a `_Switch`."""
    with _installing:
        if not isinstance(vars(head).get("forward"), _Switch):
            cast(Any, head).forward = _Switch(head, vars(head).get("forward"))
    return cast(_Switch, head.forward).original
