"""Split users' sequences into pieces, and make the batches of an epoch.

A piece of items a, b, c, d has the targets b after a, c after a b, d after a b c:

    inputs   a b c      targets  b c d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces of sequences, as rows of item codes.

    Attributes:
        inputs: [B, T] item codes, oldest first; 0 in empty columns at the end.
        targets: [B, T] codes of the next items.
        mask: [B, T] True where there is a target.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.mask.to(device))


def pieces(sequence: Sequence[int], length: int, rng: np.random.Generator) -> list[list[int]]:
    """Return pieces of at most `length` + 1 items, in which every item but the first is a target once.

    Neighbouring pieces share one item. The end of a long sequence's first piece is random, so that an item follows a
    different number of items in each epoch.
    """
    end = 1 + (length if len(sequence) <= length + 1 else int(rng.integers(1, length + 1)))
    cuts = [0, *range(end - 1, len(sequence) - 1, length)]
    return [list(sequence[start : (end if start == 0 else start + length + 1)]) for start in cuts]


GROUP = 25
"""Batches whose pieces are sorted by length together."""


def batches(sequences: Sequence[Sequence[int]], length: int, size: int, seed: tuple[int, ...]) -> list[Batch]:
    """Return the batches of one epoch, in random order.

    Pieces of similar length share a batch, so that few columns are empty. Batches have about as many targets as
    `size` pieces have on average, however long their own pieces are, so that each target counts alike.

    Args:
        sequences: item codes of each user, oldest first. Sequences of one item are ignored.
        length: most inputs of a piece.
        size: pieces per batch, on average.
        seed: of the pieces and the order.
    """
    rng = np.random.default_rng(seed)
    rows = [p for s in sequences if len(s) > 1 for p in pieces(s, length, rng)]
    order, found = rng.permutation(len(rows)), list[Batch]()
    for start in range(0, len(order), GROUP * size):
        group = sorted((rows[i] for i in order[start : start + GROUP * size]), key=len)
        found += [_batch(part) for part in _equal_parts(group, -(-len(group) // size))]
    return [found[i] for i in rng.permutation(len(found))]


def _equal_parts(rows: Sequence[list[int]], n: int) -> list[list[list[int]]]:
    """Cut rows into at most n parts of about as many targets each."""
    ends = np.cumsum([len(row) - 1 for row in rows])
    parts = (ends - 1) * n // ends[-1]
    return [[rows[i] for i in np.flatnonzero(parts == part).tolist()] for part in np.unique(parts)]


def _batch(rows: Sequence[Sequence[int]]) -> Batch:
    width = max(map(len, rows)) - 1
    inputs, targets = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        inputs[n, : len(row) - 1] = torch.tensor(row[:-1])
        targets[n, : len(row) - 1] = torch.tensor(row[1:])
        mask[n, : len(row) - 1] = True
    return Batch(inputs, targets, mask)
