"""The head of a language model, which computes for each thread what that thread asks of it.

A model is called as it is, wrappers included: theirs are the hooks by which DDP sums gradients and FSDP gathers
weights, and some models scale their logits after the head. What is asked of the head therefore passes beside the
call, in a context variable, which other threads do not see.
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

from prefrec.lm.cpu.linear import OneDNNLinear

Forward = Callable[[Tensor], Tensor]
"""Hidden states [..., D] → logits [..., V]."""
_asked: ContextVar[tuple[nn.Module, Forward] | None] = ContextVar("asked", default=None)
_installing = Lock()


class _Asked:
    """The forward of a head from the first question on: what this thread asks for, or else its own."""

    def __init__(self, head: nn.Module, own: Forward | None) -> None:
        # A strong reference would be a cycle, which keeps a model's memory until the next collection.
        self._head = weakref.ref(head)
        self._own = own

    def __reduce__(self) -> Any:
        return type(self), (self._head(), self._own)

    def __call__(self, hidden: Tensor) -> Tensor:
        asked = None if torch.compiler.is_compiling() else _asked.get()
        return self.own(hidden) if asked is None or asked[0] is not self._head() else asked[1](hidden)

    def own(self, hidden: Tensor) -> Tensor:
        """Return what the head itself computes."""
        head = cast(Any, self._head())
        return cast(Tensor, type(head).forward(head, hidden) if self._own is None else self._own(hidden))


@contextmanager
def asked_of(head: nn.Module, forward: Forward) -> Iterator[None]:
    """Let a head compute `forward` inside this context, in this thread only."""
    _own(head)
    token = _asked.set((head, forward))
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def restricted_head(
    head: nn.Module, words: Tensor | None, pick: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Iterator[bool]:
    """Restrict a head to the logits of `words` [U] inside this context and thread: [..., U] float32, in their order.

    It computes them after the hidden states that `pick` returns. The head is a linear layer, or has a method
    `logits_of(hidden, words)`. Of others, such as adapted or quantised ones, and with None, all words are computed:
    False is yielded.
    """
    whole, own = cast(Any, head), _own(head)
    is_restricted = words is not None and (hasattr(head, "logits_of") or type(head) in (nn.Linear, OneDNNLinear))

    def forward(hidden: Tensor) -> Tensor:
        hidden = pick(hidden)
        if not is_restricted:
            return own(hidden)
        # Autocast would round the logits to bfloat16, which makes titles with close scores equal.
        kind = hidden.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            if hasattr(whole, "logits_of"):
                return cast(Tensor, whole.logits_of(hidden.float(), words))
            bias = None if whole.bias is None else whole.bias[words].float()
            return F.linear(hidden.float(), whole.weight[words].float(), bias)

    with asked_of(head, forward):
        yield is_restricted


def _own(head: nn.Module) -> Forward:
    """Return a head's own forward, after it has learnt to answer each thread."""
    with _installing:
        if not isinstance(vars(head).get("forward"), _Asked):
            cast(Any, head).forward = _Asked(head, vars(head).get("forward"))
    return cast(_Asked, head.forward).own
