"""Attention in float32 on a CPU with oneDNN, for the same reason as the linear layers in `prefrec.cpu.linear`.

Scores are computed in blocks of queries, large enough for oneDNN and small enough for the processor's cache. Keys
beyond the last one that a block attends to are skipped. As in torch's kernel, the backward pass recomputes the
attention weights.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from prefrec.cpu.linear import fits_onednn, multiply

ONEDNN = "prefrec_onednn"
"""Name under which this attention is registered with transformers."""
QUERIES = 128
"""Approximate number of queries per block and head."""
LEAST = 1 << 16
"""Number of scores per row and key head below which torch's kernel is at least as fast."""


class Block(NamedTuple):
    """The queries from `first` to before `last`, which attend only to keys before `end`."""

    first: int
    last: int
    end: int
    bias: Tensor  # [R or 1, last − first, end] float32: 0 where a query attends to a key, else the lowest number


def onednn_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention outputs [R, Q, H, E], with the interface of transformers' attention functions.

    Calls go to `sdpa` if they have few scores, or another mask than a bool mask passed to `read_by_onednn`.

    Args:
        module: the layer.
        query: [R, H, Q, D], where H is a multiple of G.
        key: [R, G, K, D].
        value: [R, G, K, E].
        attention_mask: bool [R or 1, 1, Q, K], True where a query attends to a key.
        dropout, scaling, **kwargs: as in transformers.
    """
    plain = dropout == 0.0 and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    scores = query.shape[1] // key.shape[1] * query.shape[2] * key.shape[2]
    if scores < LEAST or not (plain and fits_onednn(query, key, value) and _is_read(attention_mask)):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query, key, value, blocks(attention_mask), scaling), None


def read_by_onednn(mask: Any) -> None:
    """Let oneDNN compute the attention of calls with this mask [R or 1, 1, Q, K] for the mask's lifetime."""
    _CACHE.setdefault(mask, [])


def blocks(mask: Tensor) -> list[Block]:
    """Return the blocks of a mask [R or 1, 1, Q, K], cached for the mask's lifetime."""
    if not _CACHE.get(mask):
        _CACHE[mask] = _blocks(mask[:, 0])
    return cast(list[Block], _CACHE[mask])


# All layers of a model get the same mask. With weak keys, the biases are freed together with the mask.
_CACHE: Any = WeakTensorKeyDictionary()


def _blocks(mask: Tensor) -> list[Block]:
    queries, seen = mask.shape[1], mask.any(0)
    count = max(1, round(queries / QUERIES))
    edges, made = [i * queries // count for i in range(count + 1)], []
    for first, last in pairwise(edges):
        end = max([1, *(1 + seen[first:last].any(0).nonzero()[:, 0]).tolist()])
        hidden = ~mask[:, first:last, :end]
        # Not −inf: the softmax of a query that attends to nothing would be NaN.
        bias = torch.zeros(hidden.shape, dtype=torch.float32).masked_fill_(hidden, torch.finfo(torch.float32).min)
        made.append(Block(first, last, end, bias))
    return made


def _is_read(mask: Tensor | None) -> TypeGuard[Tensor]:
    return mask is not None and mask.dim() == 4 and mask.dtype == torch.bool and mask.shape[1] == 1 and mask in _CACHE


class _Attention(torch.autograd.Function):
    """Attention that multiplies the N = H/G heads with shared keys as one matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, made: list[Block], scaling: float) -> Tensor:
        rows, heads, queries, _ = query.shape
        groups, width = value.shape[1], value.shape[-1]
        q, k, v = _grouped(query, groups, scaling), key.contiguous(), value.contiguous()
        out = query.new_empty(rows, queries, groups, heads // groups, width)
        for r, g in product(range(rows), range(groups)):
            for block in made:
                weights = _weights(_flat(q[r, g, :, block.first : block.last]), k[r, g], block, r)
                answer = multiply(weights, v[r, g, : block.end].t())
                out[r, block.first : block.last, g] = _unflat(answer, block).transpose(0, 1)
        out = out.view(rows, queries, heads, width)
        ctx.save_for_backward(query, key, value)
        ctx.made, ctx.scaling = made, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        rows, heads, queries, depth = query.shape
        groups = key.shape[1]
        q, k, v = _grouped(query, groups, ctx.scaling), key.contiguous(), value.contiguous()
        slope = _grouped(slopes[0].transpose(1, 2), groups)
        by_q = query.new_empty(rows, queries, groups, heads // groups, depth)
        by_k, by_v = (x.new_zeros(*x.shape[:2], x.shape[3], x.shape[2]) for x in (key, value))
        for r, g in product(range(rows), range(groups)):
            # The order of the blocks decides how the sums are rounded.
            for block in reversed(ctx.made):
                some, end = slice(block.first, block.last), block.end
                queries_here, slope_here = _flat(q[r, g, :, some]), _flat(slope[r, g, :, some])
                weights = _weights(queries_here, k[r, g], block, r)
                by_v[r, g, :, :end] += multiply(slope_here.t(), weights.t())
                by_weights = multiply(slope_here, v[r, g, :end])
                by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
                by_k[r, g, :, :end] += multiply(queries_here.t(), by_scores.t())
                by_queries = multiply(by_scores, k[r, g, :end].t())
                by_q[r, some, g] = _unflat(by_queries, block).transpose(0, 1)
        by_query = by_q.view(rows, queries, heads, depth).mul_(ctx.scaling).transpose(1, 2)
        return by_query, by_k.transpose(2, 3), by_v.transpose(2, 3), None, None


def _grouped(x: Tensor, groups: int, scaling: float = 1.0) -> Tensor:
    """Return [R, H, Q, D] as contiguous [R, G, N, Q, D], multiplied by `scaling`."""
    scaled = torch.mul(x, scaling, out=x.new_empty(x.shape))
    return scaled.unflatten(1, (groups, -1))


def _weights(queries: Tensor, keys: Tensor, block: Block, row: int) -> Tensor:
    """Return the attention weights [N·n, end] of a block's queries [N·n, D]."""
    scores = multiply(queries, keys[: block.end])
    _unflat(scores, block).add_(block.bias[row if len(block.bias) > 1 else 0])
    return torch.softmax(scores, -1)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _unflat(x: Tensor, block: Block) -> Tensor:
    return x.view(-1, block.last - block.first, x.shape[-1])


@cache
def register() -> None:
    """Let transformers find this attention by its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ONEDNN, onednn_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ONEDNN, sdpa_mask)
