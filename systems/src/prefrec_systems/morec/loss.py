"""Next-item losses: a softmax over all training items, or over those that stand in the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefrec_systems.morec.batches import Batch
from prefrec_systems.morec.model import MoRecModel


def full_softmax_loss(model: MoRecModel, items: Tensor, batch: Batch) -> Tensor:
    """Mean over the targets of −log softmax(target) among all items.

    Args:
        model: in training mode.
        items: item vectors [I, d]; the codes of the batch are their rows.
        batch: inputs and targets.
    """
    states = model.states(items[batch.inputs])[batch.mask]
    return F.cross_entropy(states @ items.T, batch.targets[batch.mask])


def in_batch_softmax_loss(model: MoRecModel, items: Tensor, codes: Tensor, batch: Batch, shares: Tensor) -> Tensor:
    """Mean over the targets of −log softmax(target) among the distinct items of the batch.

    An item i is in the batch with a probability of 1 − (1 − share_i)^n, n the items in it; the logarithm of that is
    taken off its score, since popular items would else be pushed down (sampled softmax; Bengio and Senécal 2008).
    Items of the same piece are no negatives of its targets: they are there because of the piece itself.

    Args:
        model: in training mode.
        items: vectors [D, d] of the distinct items.
        codes: [D] their codes, ascending.
        batch: inputs and targets, as codes.
        shares: [I] of all training interactions, by code.
    """
    inputs, targets = (torch.searchsorted(codes, c) for c in (batch.inputs, batch.targets))
    logits = model.states(items[inputs]) @ items.T - inclusion(shares[codes], batch).log()
    own = torch.zeros(len(logits), len(codes), dtype=torch.bool, device=codes.device)
    rows = torch.arange(len(logits), device=codes.device)[:, None].expand_as(inputs)
    for places in (inputs, targets):
        own[rows[batch.mask], places[batch.mask]] = True
    others = own[:, None, :] & (torch.arange(len(codes), device=codes.device) != targets[..., None])
    return F.cross_entropy(logits.masked_fill(others, -torch.inf)[batch.mask], targets[batch.mask])


def inclusion(shares: Tensor, batch: Batch) -> Tensor:
    """Probabilities [D] of items with these shares [D] of all interactions to stand in a batch of that size."""
    places = int(batch.mask.sum()) + len(batch.mask)
    return -torch.expm1(places * torch.log1p(-shares))


def distinct_codes(batch: Batch) -> Tensor:
    """Codes [D] of the items of a batch, ascending."""
    return torch.unique(torch.cat([batch.inputs[batch.mask], batch.targets[batch.mask]]))
