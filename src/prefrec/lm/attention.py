"""Which attention is the fastest for a batch: found by measurement where there is a choice, on a GPU.

SDPA reads a mask with an entry for each pair of tokens. FlexAttention skips the blocks of 128 × 128 pairs in which
nothing is seen, of which there are the more the more answers branch from a prompt; but it is compiled, and rows are
padded to whole blocks. Which is faster depends on shape and card. So both are tried at the shape of a batch, with
random numbers in place of a layer's own: no weight is touched.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefrec.console import say
from prefrec.lm.cpu.attention import ONEDNN
from prefrec.lm.cpu.linear import is_quick
from prefrec.lm.masks import (
    BLOCK,
    FLEX,
    SDPA,
    attention_implementation,
    attention_masks,
    in_blocks,
    layer_kinds,
    text_config,
)
from prefrec.lm.packing import PackedBatch

TURNS, TIMES = 3, 5
"""The fastest of so many turns counts, of so many calls each."""

AGREEMENT = {torch.float32: 1e-3}
"""Mean difference of outputs of order one that is still rounding; in other types 0.02."""


@contextmanager
def fastest_attention(core: Any, batch: PackedBatch) -> Iterator[PackedBatch]:
    """Inside this context `core` attends in the way that is to be used for `batch`; yields the batch as it is taken.

    The way is the model's own; where it was loaded to have it measured (`attention_by_shape`, see
    `prefrec.lm.models.load_model`), the one found at the first batch of each shape. On a CPU oneDNN may stand in for
    `sdpa` (`quick_attention`).

    Args:
        core: the transformers model, without adapters or wrappers.
        batch: on the model's device, in either layout.
    """
    own, found = attention_implementation(core.config), getattr(core, "attention_by_shape", None)
    is_packed = batch.attention_mask.dim() == 4
    if found is not None and own in (SDPA, FLEX):  # else chosen after it was loaded
        own = _chosen(core, batch, found) if is_packed else SDPA
    with _attending(core, _quickened(core, own, batch.attention_mask)):
        yield in_blocks(batch) if is_packed and own == FLEX else batch


@contextmanager
def quick_attention(core: Any, mask: Tensor) -> Iterator[None]:
    """Inside this context oneDNN stands in for `sdpa` where the linear layers of the model use it too.

    Args:
        core: the transformers model, without adapters or wrappers.
        mask: of the call, on the model's device; oneDNN takes masks of pairs [R, 1, Q, K].
    """
    with _attending(core, _quickened(core, attention_implementation(core.config), mask)):
        yield


def _quickened(core: Any, way: str, mask: Tensor) -> str:
    """`way`, or that of oneDNN in its place."""
    by_name = getattr(core, "_supports_attention_backend", False)  # asks transformers for its attention by name
    if way != SDPA or mask.dim() != 4 or mask.device.type != "cpu" or not by_name:
        return way
    return ONEDNN if compute_dtype(core, mask.device) == torch.float32 and is_quick(core) else way


@contextmanager
def _attending(core: Any, way: str) -> Iterator[None]:
    config, own = text_config(core.config), attention_implementation(core.config)
    before = getattr(config, "_attn_implementation", None)
    if way == before:
        yield
        return
    config._attn_implementation = way
    try:
        yield
    finally:
        # Under gradient checkpointing the layers run again in the backward pass: then it stays until the next batch.
        if not (torch.is_grad_enabled() and _runs_again(core)):
            config._attn_implementation = own


def compute_dtype(core: Any, device: torch.device) -> torch.dtype:
    """The type that a model computes in: autocast's, or its own."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else core.dtype


def measurable(core: Any, device: torch.device) -> bool:
    """Whether there is a choice that a layer of random numbers can tell: a GPU, and heads of one plain width."""
    config = text_config(core.config)
    drops = core.training and getattr(config, "attention_dropout", 0.0)
    return device.type == "cuda" and not drops and not hasattr(config, "kv_lora_rank")


def measure(core: Any, batch: PackedBatch) -> str:
    """`sdpa` or `flex_attention`, whichever is faster for the layers of `core` at the shape of a packed batch.

    Timed are the mask, and the attention of all layers, forward; where gradients are on, backward too.
    """
    seconds, out = _seconds(core, batch, SDPA)
    rows, length = batch.input_ids.shape
    where = f"attention at {rows} × {length} tokens: sdpa {1e3 * seconds:.1f} ms"
    try:
        flex_seconds, flex_out = _seconds(core, batch, FLEX)
        gap = float((out - flex_out).float().abs().mean())
    except torch.OutOfMemoryError:
        say(f"[dim]{where}; flex_attention takes too much memory[/dim]")
        return SDPA
    except Exception as e:  # noqa: BLE001 - whatever its compiler raises, there is another way
        say(f"[dim]{where}; no flex_attention here: {escape(f'{type(e).__name__}: {e}'.splitlines()[0])}[/dim]")
        return SDPA
    if not gap <= AGREEMENT.get(out.dtype, 0.02):
        say(f"[dim]{where}; flex_attention gives other numbers ({gap:.1e})[/dim]")
        return SDPA
    fastest = FLEX if flex_seconds < seconds else SDPA
    say(f"[dim]{where}, flex_attention {1e3 * flex_seconds:.1f} ms: {fastest}[/dim]")
    return fastest


def _runs_again(core: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in core.modules())


def _chosen(core: Any, batch: PackedBatch, found: dict[Any, str]) -> str:
    """From what was found before; else found now."""
    device = batch.input_ids.device
    if not measurable(core, device):
        return SDPA
    rows, length = batch.input_ids.shape
    shape = (1 << (rows - 1).bit_length(), -(-length // BLOCK), torch.is_grad_enabled(), compute_dtype(core, device))
    if (device, *shape) not in found:
        found[device, *shape] = measure(core, batch)
    return found[device, *shape]


def _seconds(core: Any, batch: PackedBatch, implementation: str) -> tuple[float, Tensor]:
    """Seconds of all layers' attention, and the output [R, L, H, D] of a layer."""
    config, length = text_config(core.config), batch.input_ids.shape[1]
    device = batch.input_ids.device
    dtype, shaped = compute_dtype(core, device), in_blocks(batch) if implementation == FLEX else batch

    def masks() -> Any:
        allowed, positions = shaped.attention_mask, shaped.position_ids
        return attention_masks(config, allowed, positions, dtype, implementation)

    made = masks()
    total, out = _time(masks, device), torch.empty(0)
    kinds = getattr(config, "layer_types", None) or layer_kinds(config) * config.num_hidden_layers
    for kind, layers in Counter(kinds).items():
        mask = made[kind] if isinstance(made, dict) else made
        attend = partial(_attend, core, implementation, mask, *_heads(config, shaped.input_ids.shape, dtype, device))
        out = attend()[:, :length].detach()
        total += layers * _time(attend, device)
    return total, out


def _attend(core: Any, implementation: str, mask: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[R, L, H, D] of one layer; where gradients are on, theirs are computed too."""
    groups = query.shape[1] // key.shape[1]
    layer = SimpleNamespace(training=core.training, num_key_value_groups=groups, is_causal=True)
    attention = ALL_ATTENTION_FUNCTIONS[implementation]
    out, _ = attention(layer, query, key, value, mask, dropout=0.0, scaling=query.shape[-1] ** -0.5)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), (query, key, value))
    return out


def _heads(config: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Queries, keys and values [R, H, L, D] as a layer makes them; the user's random numbers stay as they are."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    fewer = getattr(config, "num_key_value_heads", None) or heads
    generator, (rows, length) = torch.Generator(device).manual_seed(0), shape
    made = []
    for count in (heads, fewer, fewer):
        # As many numbers for a row with padding as for one without, so that both begin alike.
        whole = torch.randn(rows, length + -length % BLOCK, count, width, generator=generator, device=device)
        numbers = whole[:, :length].to(dtype, copy=True).contiguous()
        made.append(numbers.requires_grad_(torch.is_grad_enabled()).transpose(1, 2))
    return made


def _time(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, after one that warms up."""
    call()
    turns = []
    for _ in range(TURNS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(TIMES):
            call()
        _wait(device)
        turns.append((time.perf_counter() - start) / TIMES)
    return min(turns)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
