"""Choice of the fastest attention for a batch, by measurement on a GPU.

SDPA reads a mask with an entry for each pair of tokens. FlexAttention skips empty blocks of 128 × 128 pairs, of which
there are many if many answers branch from one prompt, but it is compiled and pads rows to whole blocks. Which one is
faster depends on shape and card, so both are timed at the shape of a batch, on random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from prefrec.lm.cpu.linear import uses_onednn
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
"""Timing takes the fastest of `TURNS` turns of `TIMES` calls each."""


@contextmanager
def fastest_attention(core: Any, batch: PackedBatch) -> Iterator[PackedBatch]:
    """Set the attention implementation of `core` for `batch` inside this context; yield the batch to pass to it.

    It is the model's own, or for a model with `attention_by_shape` (see `prefrec.lm.models.load_model`) the one that
    `measure_new_shapes` found for this shape, `sdpa` if none. On a CPU oneDNN may replace `sdpa` (`quick_attention`).
    `core` is the transformers model, without adapters or wrappers, and the batch is on its device.
    """
    own, measured = attention_implementation(core.config), getattr(core, "attention_by_shape", None)
    is_packed = batch.attention_mask.dim() == 4
    if measured is not None and own in (SDPA, FLEX):  # anything else was set after loading
        own = measured.get(_shape(core, batch), SDPA) if is_packed else SDPA
    with _attending(core, _with_onednn(core, own, batch.attention_mask)):
        yield in_blocks(batch) if is_packed and own == FLEX else batch


def measure_new_shapes(core: Any, batches: Sequence[PackedBatch]) -> None:
    """Time both attentions at the shapes of packed batches that `core.attention_by_shape` does not have yet.

    Does nothing for models without that attribute, and where timing has no meaning (`measurable`).
    """
    measured = getattr(core, "attention_by_shape", None)
    if measured is None or attention_implementation(core.config) not in (SDPA, FLEX):
        return
    for batch in batches:
        if batch.attention_mask.dim() != 4 or not measurable(core, batch.input_ids.device):
            continue
        if (shape := _shape(core, batch)) not in measured:
            measured[shape] = measure(core, batch)


@contextmanager
def quick_attention(core: Any, mask: Tensor) -> Iterator[None]:
    """Replace `sdpa` by oneDNN inside this context if the model's linear layers use oneDNN too.

    `core` is the transformers model. oneDNN takes masks of pairs [R, 1, Q, K].
    """
    with _attending(core, _with_onednn(core, attention_implementation(core.config), mask)):
        yield


def _with_onednn(core: Any, implementation: str, mask: Tensor) -> str:
    """Return oneDNN's attention if it can replace `implementation`, else `implementation`."""
    by_name = getattr(core, "_supports_attention_backend", False)  # the model looks its attention up by name
    if implementation != SDPA or mask.dim() != 4 or mask.device.type != "cpu" or not by_name:
        return implementation
    return ONEDNN if compute_dtype(core, mask.device) == torch.float32 and uses_onednn(core) else implementation


@contextmanager
def _attending(core: Any, implementation: str) -> Iterator[None]:
    config, own = text_config(core.config), attention_implementation(core.config)
    before = getattr(config, "_attn_implementation", None)
    if implementation == before:
        yield
        return
    config._attn_implementation = implementation
    try:
        yield
    finally:
        # Gradient checkpointing runs the layers again in the backward pass, after this context. They must then use
        # the same attention, so it stays until the next batch.
        runs_again = (getattr(module, "gradient_checkpointing", False) for module in core.modules())
        if not (torch.is_grad_enabled() and any(runs_again)):
            config._attn_implementation = own


def compute_dtype(core: Any, device: torch.device) -> torch.dtype:
    """Return the type that a model computes in: autocast's, or its own."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else core.dtype


def measurable(core: Any, device: torch.device) -> bool:
    """Return True if timing a layer of random numbers is meaningful: on a GPU, with heads of one width."""
    config = text_config(core.config)
    # FlexAttention has no dropout. With `kv_lora_rank` (DeepSeek) queries and values have different widths.
    drops = core.training and getattr(config, "attention_dropout", 0.0)
    return device.type == "cuda" and not drops and not hasattr(config, "kv_lora_rank")


def measure(core: Any, batch: PackedBatch) -> str:
    """Return `sdpa` or `flex_attention`, whichever is faster for the layers of `core` at the shape of a packed batch.

    The timing covers the mask and the attention of all layers, with the backward pass if gradients are on.
    """
    seconds, out = _seconds(core, batch, SDPA)
    fastest = SDPA
    try:
        flex_seconds, flex_out = _seconds(core, batch, FLEX)
        gap = float((out - flex_out).float().abs().mean())
    except Exception as e:  # noqa: BLE001 - its compiler may raise anything, and sdpa always works
        result = f"fails: {escape(f'{type(e).__name__}: {e}'.splitlines()[0])}"
    else:
        if not gap <= (1e-3 if out.dtype == torch.float32 else 0.02):  # of outputs of order one: more than rounding
            result = f"gives other numbers ({gap:.1e})"
        else:
            fastest = FLEX if flex_seconds < seconds else SDPA
            result = f"{1e3 * flex_seconds:.1f} ms: {fastest}"
    rows, length = batch.input_ids.shape
    say(f"[dim]attention at {rows} × {length} tokens: sdpa {1e3 * seconds:.1f} ms, flex_attention {result}[/dim]")
    return fastest


def _shape(core: Any, batch: PackedBatch) -> tuple[Any, ...]:
    """Return all that the speed of attention depends on. Sizes are rounded up, so that few shapes are measured."""
    device, (rows, length) = batch.input_ids.device, batch.input_ids.shape
    dtype = compute_dtype(core, device)
    return device, 1 << (rows - 1).bit_length(), -(-length // BLOCK), torch.is_grad_enabled(), dtype


def _seconds(core: Any, batch: PackedBatch, implementation: str) -> tuple[float, Tensor]:
    """Return the seconds of all layers' attention, and the output [R, L, H, D] of one layer."""
    config, length = text_config(core.config), batch.input_ids.shape[1]
    device = batch.input_ids.device
    dtype, shaped = compute_dtype(core, device), in_blocks(batch) if implementation == FLEX else batch

    def masks() -> Any:
        allowed, positions = shaped.attention_mask, shaped.position_ids
        return attention_masks(config, allowed, positions, dtype, implementation)

    made = masks()
    total, out = _time(masks), torch.empty(0)
    kinds = getattr(config, "layer_types", None) or layer_kinds(config) * config.num_hidden_layers
    for kind, layers in Counter(kinds).items():
        mask = made[kind] if isinstance(made, dict) else made
        attend = partial(_attend, core, implementation, mask, *_heads(config, shaped.input_ids.shape, dtype, device))
        out = attend()[:, :length].detach()
        total += layers * _time(attend)
    return total, out


def _attend(core: Any, implementation: str, mask: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the output [R, L, H, D] of one layer; compute its gradients too if they are on."""
    groups = query.shape[1] // key.shape[1]
    layer = SimpleNamespace(training=core.training, num_key_value_groups=groups, is_causal=True)
    attention = ALL_ATTENTION_FUNCTIONS[implementation]
    out, _ = attention(layer, query, key, value, mask, dropout=0.0, scaling=query.shape[-1] ** -0.5)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), (query, key, value))
    return out


def _heads(config: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return random queries, keys and values [R, H, L, D] of a layer's shape."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    # A generator of its own: the global one must not advance, or a training would depend on what was measured.
    generator, (rows, length) = torch.Generator(device).manual_seed(0), shape
    tensors = []
    for count in (heads, key_heads, key_heads):
        # Drawn at the padded length for both implementations, so that they get the same numbers and can be compared.
        whole = torch.randn(rows, length + -length % BLOCK, count, width, generator=generator, device=device)
        numbers = whole[:, :length].to(dtype, copy=True).contiguous()
        tensors.append(numbers.requires_grad_(torch.is_grad_enabled()).transpose(1, 2))
    return tensors


def _time(call: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    from torch.utils.benchmark import Timer  # its import takes a tenth of a second, and only a GPU needs it

    timer = Timer("call()", globals={"call": call})  # it waits for a GPU before it reads the clock
    return min(timer.timeit(TIMES).mean for _ in range(TURNS))
