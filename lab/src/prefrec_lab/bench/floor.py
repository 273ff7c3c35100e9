"""Lower bound on the cost of a step: the matrix products that every method needs, at the machine's measured rate.

FLOPs are those of dense decoder layers. A weight costs 2 per token in a forward pass, and 2 more in a backward pass,
which under LoRA needs the gradients of activations only. A pair of query and key that may attend costs 4 per feature
of the heads, and 8 more in a backward pass. The adapter's own products are added. Every row passes three times:
forward through policy and reference, and backward. Norms, softmax and rotary embeddings count as nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from prefrec.cpu.linear import product
from prefrec.prompts import ChoiceSet
from prefrec_lab.machine import time_product, time_square


@dataclass(frozen=True)
class ModelShape:
    """The matrices of a dense decoder."""

    linears: tuple[tuple[int, int, int], ...]  # (inputs, outputs, number) of the layers' matrices
    head: tuple[int, int]  # (inputs, outputs) of the language-model head
    layers: int  # number of attention layers
    attention: int  # features of all query heads of a layer
    lora_rank: int  # of the adapter on every matrix but the head

    @property
    def body(self) -> int:
        """Weights of the layers' matrices."""
        return sum(i * o * n for i, o, n in self.linears)

    @property
    def lora(self) -> int:
        """Weights of the adapter."""
        return sum(self.lora_rank * (i + o) * n for i, o, n in self.linears)


def model_shape(config: PretrainedConfig, lora_rank: int) -> ModelShape:
    """Return the matrices of the model with this configuration; no weights are allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    sizes = Counter(
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear) and m is not head
    )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        linears=tuple((i, o, n) for (i, o), n in sorted(sizes.items())),
        head=(head.in_features, head.out_features),
        layers=config.num_hidden_layers,
        attention=heads * width,
        lora_rank=lora_rank,
    )


@dataclass(frozen=True)
class Tokens:
    """The minimum work for a set of examples."""

    # tokens through the layers: each prompt once, and each answer once without its last token, which predicts nothing
    body: int
    # positions that need logits: the prompt's last, for the first tokens of all answers, and those of `body` that
    # belong to answers
    head: int
    pairs: int  # pairs of a query and a key that may attend


def count_tokens(choice_sets: Sequence[ChoiceSet]) -> Tokens:
    """Return the minimum tokens and attention pairs to score these examples exactly."""
    body = head = pairs = 0
    for c in choice_sets:
        prompt = len(c.prompt)
        body += prompt
        head += 1
        pairs += prompt * (prompt + 1) // 2
        for length in map(len, c.answers):
            body += length - 1
            head += length - 1
            pairs += (length - 1) * prompt + (length - 1) * length // 2
    return Tokens(body, head, pairs)


def flops(shape: ModelShape, tokens: Tokens, *, forward: int, backward: int, adapted: int) -> float:
    """Return the FLOPs of passes over these tokens.

    Args:
        forward: forward passes (2 in a training step: policy and reference).
        adapted: forward passes with the adapter.
    """
    passes = forward + backward
    dense = 2 * passes * (shape.body * tokens.body + shape.head[0] * shape.head[1] * tokens.head)
    attention = (4 * forward + 8 * backward) * shape.layers * shape.attention * tokens.pairs
    adapter = (2 * adapted + 4 * backward) * shape.lora * tokens.body
    return float(dense + attention + adapter)


@dataclass(frozen=True)
class Rates:
    """Rates of matrix products, in FLOPs per second: of large squares, and of the model's layers at the rows' size.

    `square` and `layers` by wall time, `square_cpu` and `layers_cpu` by CPU time.
    """

    square: float
    square_cpu: float
    layers: float
    layers_cpu: float


def measure_rates(
    shape: ModelShape, tokens: Tokens, *, device: str, dtype: torch.dtype, square: int, least_s: float
) -> Rates:
    """Return the machine's rates now; each product is repeated for at least `least_s` seconds.

    The layers' rate is that of a training step: two products forward (policy and reference), one backward.
    """
    whole = time_square(square, device=device, dtype=dtype, least_s=least_s)
    spent, done = [0.0, 0.0], 0.0
    matrices = [*((i, o, n, tokens.body) for i, o, n in shape.linears), (*shape.head, 1, tokens.head)]
    for inputs, outputs, count, rows in matrices:
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        gradient = torch.randn(rows, outputs, device=device, dtype=dtype)
        forward = time_product(partial(product, x, weight), device=device, least_s=least_s)
        backward = time_product(partial(product, gradient, weight.t()), device=device, least_s=least_s)
        spent[0] += count * (2 * forward.wall + backward.wall)
        spent[1] += count * (2 * forward.cpu + backward.cpu)
        done += count * 3 * 2.0 * rows * inputs * outputs
    return Rates(2.0 * square**3 / whole.wall, 2.0 * square**3 / whole.cpu, done / spent[0], done / spent[1])
