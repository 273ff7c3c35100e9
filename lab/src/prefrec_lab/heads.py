"""Align the head of a model with item-ID tokens, with frozen layers, so that hidden states are computed once.

The head has the logits (P·h)·v_i + b_i after a hidden state h. Its vectors v_i, projection P and biases b_i are
trained. Layers and input vectors are those of the start. So are all hidden states, which several losses can share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrec.lm.head import replaced_head
from prefrec.lm.items import ItemTable, padded_length
from prefrec.losses import Loss, loss_by_size, needs_reference, takes


class Head(nn.Module):
    """The logits [..., I] of all items after hidden states [..., D], with free item vectors.

    Args:
        table: items of the model that the head starts from.
    """

    def __init__(self, table: ItemTable) -> None:
        super().__init__()
        with torch.no_grad():
            self.vectors = nn.Parameter(table.project(table.titles) + table.own)
            self.predict = nn.Parameter(table.predict.weight.clone())
            self.bias = nn.Parameter(table.bias.clone())

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(F.linear(hidden, self.predict), self.vectors, self.bias)

    @torch.no_grad()
    def logps(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [B, I] of all items after hidden states [B, D]."""
        logits: Tensor = self(hidden)
        return logits.log_softmax(dim=1)


@dataclass(frozen=True, eq=False)
class Choices:
    """B examples of an alignment.

    Attributes:
        hidden: [B, D] hidden states after their histories.
        answers: [B, 1 + N] places of the answers in the catalogue, the chosen one first; −1 where there is none.
        scores: [B, 1 + N] for losses that take `scores`. None: there are none.
    """

    hidden: Tensor
    answers: Tensor
    scores: Tensor | None = None


@torch.no_grad()
def states(model: Any, prompts: Sequence[Sequence[int]], most: int = 64) -> list[Tensor]:
    """Return the hidden states [L, D] after each token of prompts, in float32; `most`: prompts per call."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    head, found = model.get_output_embeddings(), {}
    for start in range(0, len(order), most):
        rows = order[start : start + most]
        # Padding is on the right, where no earlier token attends to it.
        length = max(padded_length(prompts[n]) for n in rows)
        ids = torch.tensor([[*prompts[n], *[0] * (length - len(prompts[n]))] for n in rows])
        with replaced_head(head, lambda hidden: hidden):
            hidden = model(input_ids=ids, use_cache=False).logits.float()
        found.update({n: own[: len(prompts[n])].clone() for n, own in zip(rows, hidden, strict=True)})
    return [found[n] for n in range(len(prompts))]


def aligned(
    table: ItemTable,
    choices: Choices,
    loss: Loss,
    *,
    rate: float,
    epochs: Sequence[int],
    batch: int,
    beta: float = 1.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> Iterator[Head]:
    """Yield the head that starts from `table`, after each number of `epochs` (ascending) of training with a loss.

    Log-probabilities are over all items.

    Args:
        table: items of the start, which is also the reference.
        choices: the examples.
        loss: of `prefrec.losses`.
        rate: learning rate of Adam, constant after the first twentieth of the steps.
        epochs: after which a head is wanted.
        batch: examples per step.
        beta: of the loss.
        max_grad_norm: norm to which gradients are clipped.
        seed: of the order of examples.
    """
    head, reference = Head(table), Head(table).requires_grad_(False)
    optimiser = torch.optim.Adam(head.parameters(), lr=rate)
    order, step = torch.Generator().manual_seed(seed), 0
    size = len(choices.answers)
    warmup = max(1, epochs[-1] * -(-size // batch) // 20)
    for epoch in range(1, epochs[-1] + 1):
        for rows in torch.randperm(size, generator=order).split(batch):
            step += 1
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, step / warmup)
            optimiser.zero_grad()
            _mean_loss(head, reference, choices, rows, loss, beta).backward()
            nn.utils.clip_grad_norm_(head.parameters(), max_grad_norm)
            optimiser.step()
        if epoch in epochs:
            yield copy.deepcopy(head)


def _mean_loss(head: Head, reference: Head, choices: Choices, rows: Tensor, loss: Loss, beta: float) -> Tensor:
    """Return the mean loss of some rows."""
    hidden, answers = choices.hidden[rows], choices.answers[rows]
    places = answers.clamp_min(0)  # `loss_by_size` leaves out the answers that are not there
    logps = head(hidden).log_softmax(dim=1).gather(1, places)
    ref = reference.logps(hidden).gather(1, places) if needs_reference(loss) else None
    scores = {}
    if takes(loss, "scores") and choices.scores is not None:
        scores["scores"] = choices.scores[rows]
    sizes = (answers >= 0).sum(dim=1).tolist()
    return loss_by_size(loss, logps, ref, beta, sizes, **scores).losses.mean()
