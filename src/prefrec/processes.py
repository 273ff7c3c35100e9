"""The processes of one job, as `accelerate launch` starts them: which one this is, and what each has found.

Nothing is imported and nothing happens where there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=14)
"""How long processes wait for one that works alone, such as on a recommender that it trains."""


def count() -> int:
    """Number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """True in the process that writes files and speaks to people."""
    return index() == 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part of items that all have: every n-th, so that long and short ones are spread evenly."""
    return list(items[index() :: count()])


def pool(items: list[T]) -> list[T]:
    """The items of all processes, those of the first one first. All processes must call it, and wait here."""
    if count() == 1:
        return items
    import torch.distributed as dist

    parts: list[list[T]] = [[] for _ in range(count())]
    dist.all_gather_object(parts, items, group=_group())
    return [item for part in parts for item in part]


def from_first(value: T) -> T:
    """The first process's value. All processes must call it, and wait here."""
    (first,) = pool([value] if is_first() else [])
    return first


def wait() -> None:
    """Wait for all processes to come here."""
    pool([None])


@cache
def _group() -> Any:
    """A group of all processes for what they tell each other here.

    It is one of its own, so that its patience is the same whoever made the job's group, accelerate or the Trainer.
    Training keeps that one, whose shorter time tells sooner that a process hangs.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState()
    return dist.new_group(timeout=PATIENCE)
