"""The order of examples: random in training, sorted by length inside each optimiser step; otherwise by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Sampler

from prefrec import processes
from prefrec.lm.packing import tokens_of
from prefrec.prompts import ChoiceSet


@dataclass(eq=False)
class StepSampler(Sampler[int]):
    """A sampler in a new random order per epoch, with the examples of each optimiser step sorted by length.

    Sorting within a step reduces padding, and does not change which examples a step has. The order depends only on
    seed and epoch; without lengths it is that of `RandomSampler` with a generator of seed + epoch.

    Args:
        rows: number of examples.
        step: examples per optimiser step, over all processes.
        lengths: returns the length of each example in this epoch. None: do not sort.
        groups: group of each example. The examples of a group stay together and in order; groups are shuffled.
    """

    rows: int
    step: int
    lengths: Callable[[], Sequence[int]] | None
    seed: int
    groups: Sequence[int] | None = None
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        if (groups := self.groups) is not None:
            yield from sorted(range(self.rows), key=lambda row: order[groups[row]])
            return
        lengths = None if self.lengths is None else self.lengths()
        for start in range(0, self.rows, self.step):
            step = order[start : start + self.step]
            yield from step if lengths is None else longest_first(step, lengths)


def own_batches(choice_sets: Sequence[ChoiceSet], batch_size: int, *, share: bool = False) -> list[list[int]]:
    """Return this process's batches of examples of similar length, longest first, so that memory errors come early.

    With `share`, batches consist of successive examples, which can share their prompts.
    """
    order = list(range(len(choice_sets)))
    if not share:
        order = longest_first(order, [tokens_of(c) for c in choice_sets])
    return processes.share([order[start : start + batch_size] for start in range(0, len(order), batch_size)])


def longest_first(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Sort rows from the longest to the shortest; equal lengths keep their order."""
    return sorted(rows, key=lambda i: -lengths[i])
