"""MoRec's own weights: from title vectors to item vectors, and from a history of these to the next one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MoRecModel(nn.Module):
    """SASRec with item vectors that are made of titles.

    The score of an item after a history is the inner product of the history's state and the item's vector.

    Args:
        width: H, of the title vectors.
        history_length: most items of a history.
        hidden_size: d.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        history_length: int,
        *,
        hidden_size: int,
        inner_size: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.project = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.positions = nn.Embedding(history_length, hidden_size)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            hidden_size, n_heads, inner_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(hidden_size)
        self.blocks = nn.TransformerEncoder(block, n_layers, norm, enable_nested_tensor=False)

    @torch.no_grad()
    def standardise_by(self, vectors: Tensor) -> None:
        """Centre and scale title vectors from now on as these [I, H]: an LM's have a few huge features."""
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp_min(1e-6))

    def items(self, vectors: Tensor) -> Tensor:
        """Return the item vectors [I, d] of title vectors [I, H]."""
        return self.project((vectors - self.mean) / self.std)

    def states(self, histories: Tensor) -> Tensor:
        """Return the expected next vector [B, T, d] after each item of histories [B, T, d], oldest first.

        No item sees a later one. So short histories may be filled at their end.
        """
        length = histories.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=histories.device)
        inputs = self.dropout(histories + self.positions.weight[:length])
        return self.blocks(inputs, mask=mask, is_causal=True)
