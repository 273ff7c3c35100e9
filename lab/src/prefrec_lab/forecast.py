"""Predict memory and time of a training step on a card from shapes, without loading weights.

A step of S-DPO runs on tensors without data, with two and with three layers and for one row and for four. Memory,
moved bytes and FLOPs of a decoder are affine in the number of layers, and for given layers in that of rows, which
gives them for the whole model.
"""

from __future__ import annotations

import weakref
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig

from prefrec.lm.lora import use_quick_lora
from prefrec.lm.models import DTYPES
from prefrec.lm.packing import PackedBatch, pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from prefrec.training.base import leave_casting_to_autocast
from prefrec_lab.bench.floor import count_tokens, flops, model_shape

PROMPT, ANSWER = 256, 8
"""Tokens of a prompt and of an answer, end token included."""
USABLE = 0.94
"""Share of a card's memory that a step may take; the rest is for the driver, libraries and the allocator's gaps."""


@dataclass(frozen=True)
class Card:
    """A card by its maker's data sheet.

    Attributes:
        memory: bytes.
        flops: FLOP/s of dense products in bfloat16.
        bandwidth: bytes/s of its memory.
    """

    memory: float
    flops: float
    bandwidth: float


CARDS = {
    "h200-141gb": Card(141e9, 989.4e12, 4.8e12),
    "h100-80gb": Card(80e9, 989.4e12, 3.35e12),
    "a100-80gb": Card(80e9, 312e12, 2.039e12),
    "a100-40gb": Card(40e9, 312e12, 1.555e12),
    "l40s-48gb": Card(48e9, 362e12, 0.864e12),
    "l4-24gb": Card(24e9, 121e12, 0.3e12),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one pass with gradient: bytes at its peak, and bytes that all operations but products move."""

    peak: float
    moved: float


@dataclass(frozen=True)
class Forecast:
    """A step of S-DPO on a card.

    Attributes:
        rows: the most rows that fit in a pass; 0: not even one.
        peak: bytes of a pass of so many rows (of one row if none fits).
        flops: of a step of so many rows: two passes forward, one backward.
        seconds: at the card's data sheet, and at half of it. Measured steps should lie between.
    """

    rows: int
    peak: float
    flops: float
    seconds: tuple[float, float]


def forecast(config: PretrainedConfig, card: Card, *, negatives: int, rank: int, dtype: str = "bfloat16") -> Forecast:
    """Return the forecast for a model with LoRA on all linear layers.

    Args:
        negatives: N, rejected answers per row.
        rank: of LoRA.
        dtype: of `DTYPES`, for the frozen base; the adapter is in float32.
    """
    known = {rows: cost(config, rows, negatives=negatives, rank=rank, dtype=dtype) for rows in (1, 4)}
    first, slope = known[1].peak, (known[4].peak - known[1].peak) / 3
    rows = max(0, int((USABLE * card.memory - first) / slope) + 1) if first <= USABLE * card.memory else 0
    at_least_one = max(1, rows)
    moved = known[1].moved + (at_least_one - 1) * (known[4].moved - known[1].moved) / 3
    work = step_flops(config, at_least_one, negatives=negatives, rank=rank)
    # The reference's pass moves about a third of what the policy's two do.
    least = work / card.flops + 4 / 3 * moved / card.bandwidth
    return Forecast(rows, first + (at_least_one - 1) * slope, work, (least, 2 * least))


def step_flops(config: PretrainedConfig, rows: int, *, negatives: int, rank: int) -> float:
    """Return the FLOPs of a step: the policy's two passes, and the reference's."""
    tokens = count_tokens(some_rows(rows, negatives))
    return flops(model_shape(config, rank), tokens, forward=2, backward=1, adapted=1)


def cost(config: PretrainedConfig, rows: int, *, negatives: int, rank: int, dtype: str) -> Cost:
    """Return the cost of the policy's pass with gradient over `rows` rows, for all layers of the model."""
    layers = config.get_text_config().num_hidden_layers
    two, three = (_step(config, n, rows, negatives, rank, dtype) for n in (2, 3))
    return Cost(*(a + (layers - 2) * (b - a) for a, b in ((two.peak, three.peak), (two.moved, three.moved))))


def _step(config: PretrainedConfig, layers: int, rows: int, negatives: int, rank: int, dtype: str) -> Cost:
    """Return the cost of a pass through the first `layers` layers, without data."""
    shallow = deepcopy(config)
    shallow.get_text_config().num_hidden_layers = layers
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(shallow, dtype=DTYPES[dtype]), lora_config(rank))
    use_quick_lora(model)  # as the trainer does
    batch = pack(some_rows(rows, negatives), pad_id=0)
    with FakeTensorMode() as fake:
        _put_on_cpu(model)
        fields: dict[str, Any] = {
            name: fake.from_tensor(value) if torch.is_tensor(value) else value
            for name, value in batch.as_dict().items()
        }
        return count_pass(model.train(), PackedBatch(**fields), DTYPES[dtype])


def count_pass(model: nn.Module, batch: PackedBatch, dtype: torch.dtype) -> Cost:
    """Return the cost of S-DPO's pass over a batch, with the weights, their gradients and the state of AdamW."""
    if dtype != torch.float32:
        leave_casting_to_autocast(model)  # as the trainer does
    with _Ledger() as ledger:
        trained = [p for p in model.parameters() if p.requires_grad]
        state = [torch.zeros_like(p) for p in trained for _ in range(2)]
        for p in trained:
            p.grad = torch.zeros_like(p)  # of the micro-batch before
        for tensor in (*model.parameters(), *model.buffers(), *batch.as_dict().values()):
            ledger.add(tensor)
        ledger.moved = 0.0
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logps = choice_logps(model, batch)
            loss = softmax_dpo_loss(logps, torch.zeros_like(logps), 1.0).losses.mean()
        loss.backward()
        del state
    return Cost(ledger.peak, ledger.moved)


class _Ledger(TorchDispatchMode):
    """Counts the bytes of storages that are alive, and those that operations other than products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.moved = 0.0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(out) if self.add(t)]
        if new and not str(func).startswith(("aten.mm", "aten.addmm", "aten.bmm")):
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in (*read, *new))
        return out

    def add(self, tensor: Any) -> bool:
        """Count a tensor's storage; return False if it is known, as that of a view, or this is not a tensor."""
        if not isinstance(tensor, torch.Tensor):
            return False
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return False
        self._known.add(name)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, name, size)
        return True

    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.held -= size


def _put_on_cpu(model: nn.Module) -> None:
    """Move a model from the device meta to the CPU, where a fake mode leaves tensors without data."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                tensors[name] = None if old is None else made[id(old)]


def some_rows(count: int, negatives: int) -> list[ChoiceSet]:
    """Return that many rows of `PROMPT` tokens with 1 + N answers of `ANSWER` tokens."""
    tokens = np.arange(3, 3 + PROMPT + (1 + negatives) * ANSWER).tolist()
    answers = [tuple(tokens[PROMPT + i * ANSWER :][:ANSWER]) for i in range(1 + negatives)]
    return [ChoiceSet(tuple(tokens[:PROMPT]), tuple(answers))] * count
