"""Next-item losses: a softmax over all training items, or over the items of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefrec_systems.morec.batches import Batch
from prefrec_systems.morec.model import MoRecModel


def full_softmax_loss(model: MoRecModel, items: Tensor, batch: Batch) -> Tensor:
    """Return the mean over the targets of −log softmax(target) among all items.

    Args:
        items: item vectors [I, d]; the codes of the batch are their rows.
    """
    states = model.states(items[batch.inputs])[batch.mask]
    return F.cross_entropy(states @ items.T, batch.targets[batch.mask])


def in_batch_softmax_loss(model: MoRecModel, items: Tensor, codes: Tensor, batch: Batch, shares: Tensor) -> Tensor:
    """Return the mean over the targets of −log softmax(target) among the distinct items of the batch.

    Item i is in a batch of n items with probability 1 − (1 − share_i)^n. The logarithm of it is subtracted from the
    item's score; otherwise popular items would be pushed down (sampled softmax; Bengio and Senécal 2008). Items of
    the same piece are not negatives of its targets: they are in the batch because of the piece itself.

    Args:
        items: vectors [D, d] of the distinct items.
        codes: [D] their codes, ascending.
        batch: inputs and targets, as codes.
        shares: share of each item [I] in all training interactions, by code.
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
    """Return the probabilities [D] that items with these shares [D] of all interactions are in such a batch."""
    places = int(batch.mask.sum()) + len(batch.mask)
    return -torch.expm1(places * torch.log1p(-shares))


def distinct_codes(batch: Batch) -> Tensor:
    """Return the codes [D] of the items of a batch, ascending."""
    return torch.unique(torch.cat([batch.inputs[batch.mask], batch.targets[batch.mask]]))
