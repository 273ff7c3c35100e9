"""MoRec: item vectors from titles, and SASRec's layers on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrec.cpu.rows import take_rows
from prefrec.towers.title_encoder import TitleEncoder
from prefrec_systems.sequential.batches import Batch
from prefrec_systems.sequential.config import NextItemSection
from prefrec_systems.sequential.models import NextItemModel, Transformer, full_softmax_loss


class MoRecModel(nn.Module):
    """SASRec with item vectors made from title vectors.

    The score of an item after a history is the inner product of the history's state and the item's vector.

    Args:
        config: settings of the model.
        width: H, the width of title vectors.
        history_length: most items of a history.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NextItemSection, width: int, history_length: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        size = config.hidden_size
        self.project = nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))
        self.layers = Transformer(config, history_length)

    @torch.no_grad()
    def standardise_by(self, vectors: Tensor) -> None:
        """Standardise title vectors by mean and deviation of these [I, H], because LMs have a few huge features."""
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp_min(1e-6))

    def items(self, vectors: Tensor) -> Tensor:
        """Return the item vectors [I, d] of title vectors [I, H]."""
        return cast(Tensor, self.project((vectors - self.mean) / self.std))

    def states(self, histories: Tensor) -> Tensor:
        """Return the expected next vector [B, T, d] after each item of histories [B, T, d], oldest first."""
        return cast(Tensor, self.layers(histories))


class OnTitles(nn.Module):
    """A `NextItemModel` for MoRec: the model, the titles of all items, and the encoder if it is trained.

    Args:
        model: MoRec without the encoder.
        vectors: [I, H] title vectors by item code.
        titles: [I] titles by item code.
        shares: [n] share of each training item in all training interactions, by item code.
        in_batch: whether the softmax is over the items of the batch.
        encoder: encoder to train. Default: title vectors are fixed.
    """

    vectors: Tensor
    shares: Tensor

    def __init__(
        self,
        model: MoRecModel,
        vectors: Tensor,
        titles: Sequence[str] = (),
        shares: Tensor | None = None,
        *,
        in_batch: bool = False,
        encoder: TitleEncoder | None = None,
    ) -> None:
        super().__init__()
        self.model, self.encoder, self.titles, self.in_batch = model, encoder, titles, in_batch
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("shares", torch.empty(0) if shares is None else shares, persistent=False)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss over the targets of a batch."""
        if not self.in_batch:
            return full_softmax_loss(
                self, self._items(torch.arange(len(self.shares), device=self.shares.device)), batch
            )
        codes = distinct_codes(batch)
        return in_batch_softmax_loss(self, self._items(codes), codes, batch, self.shares)

    def all_items(self) -> Tensor:
        """Return the item vectors [I, d]."""
        vectors = self.vectors
        if self.encoder is not None:
            vectors = self.encoder.encode(self.titles, progress=False).to(vectors.device)
        return self.model.items(vectors)

    def states(self, histories: Tensor) -> Tensor:
        """Return the expected next vector [B, T, d] after each item of histories [B, T, d], oldest first."""
        return self.model.states(histories)

    def _items(self, codes: Tensor) -> Tensor:
        """Return item vectors [D, d] of codes [D], through the encoder if it is trained."""
        if self.encoder is None:
            return self.model.items(self.vectors[codes])
        return self.model.items(self.encoder([self.titles[c] for c in codes.tolist()]))


def in_batch_softmax_loss(model: NextItemModel, items: Tensor, codes: Tensor, batch: Batch, shares: Tensor) -> Tensor:
    """Return the mean over the targets of −log softmax(target) among the distinct items of the batch.

    Item i is in a batch of n items with probability 1 − (1 − share_i)^n. Its logarithm is subtracted from the item's
    score; otherwise popular items would be penalised (sampled softmax; Bengio and Senécal 2008). Items of a sequence
    are not negatives of its own targets, because they are in the batch due to the sequence itself.

    Args:
        model: the model.
        items: [D, d] vectors of the distinct items.
        codes: [D] codes of the distinct items, ascending.
        batch: inputs and targets as codes.
        shares: [I] share of each item in all training interactions, by code.
    """
    inputs, targets = (torch.searchsorted(codes, c) for c in (batch.inputs, batch.targets))
    logits = model.states(take_rows(items, inputs)) @ items.T - inclusion(shares[codes], batch).log()
    in_sequence = torch.zeros(len(logits), len(codes), dtype=torch.bool, device=codes.device)
    rows = torch.arange(len(logits), device=codes.device)[:, None].expand_as(inputs)
    for columns in (inputs, targets):
        in_sequence[rows[batch.mask], columns[batch.mask]] = True
    others = in_sequence[:, None, :] & (torch.arange(len(codes), device=codes.device) != targets[..., None])
    return F.cross_entropy(logits.masked_fill(others, -torch.inf)[batch.mask], targets[batch.mask])


def inclusion(shares: Tensor, batch: Batch) -> Tensor:
    """Return the probabilities [D] that items with these shares [D] of interactions are in a batch of this size."""
    positions = int(batch.mask.sum()) + len(batch.mask)
    return -torch.expm1(positions * torch.log1p(-shares))


def distinct_codes(batch: Batch) -> Tensor:
    """Return the codes [D] of the items of a batch, ascending."""
    return torch.unique(torch.cat([batch.inputs[batch.mask], batch.targets[batch.mask]]))
