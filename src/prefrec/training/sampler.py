"""The order of rows: random in each epoch, long rows together in each optimiser step; outside training by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from prefrec import processes
from prefrec.lm.packing import tokens_of
from prefrec.prompts import ChoiceSet


class StepSampler(Sampler[int]):
    """Rows in the random order of an epoch; those of one optimiser step from the longest to the shortest.

    An optimiser step adds up the gradients of its rows, in whatever order they come. Sorting them inside it makes
    passes of like lengths, with less padding, and processes that wait less for one another, while every step is
    made of the same rows as without. The order depends on seed and epoch alone, so that a resumed run goes on
    in it; without lengths it is that of `torch.utils.data.RandomSampler` with a generator of seed + epoch.

    Args:
        rows: number of rows.
        step: rows of an optimiser step, over all processes and accumulation steps.
        lengths: gives those of the rows in this epoch; None: not sorted.
        seed: of the order.
    """

    def __init__(self, rows: int, step: int, lengths: Callable[[], Sequence[int]] | None, seed: int) -> None:
        self.rows = rows
        self.step = step
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        lengths = None if self.lengths is None else self.lengths()
        for start in range(0, self.rows, self.step):
            step = order[start : start + self.step]
            yield from step if lengths is None else longest_first(step, lengths)


def own_batches(choice_sets: Sequence[ChoiceSet], batch_size: int) -> list[list[int]]:
    """This process's batches of rows of like length, so that little is padding.

    The longest come first: memory runs out at once or never.
    """
    order = longest_first(range(len(choice_sets)), [tokens_of(c) for c in choice_sets])
    return processes.share([order[start : start + batch_size] for start in range(0, len(order), batch_size)])


def longest_first(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The rows from the longest to the shortest, those of one length in their order."""
    return sorted(rows, key=lambda i: -lengths[i])
