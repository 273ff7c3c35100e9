"""The processes of a job started by `accelerate launch`: ranks, and exchange of values.

With a single process, nothing is imported and the functions have no effect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=14)
"""Maximum time to wait for a process that works alone, for example one that trains a recommender."""


def count() -> int:
    """Return the number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Return True in the process that writes files and messages."""
    return index() == 0


def share(items: Sequence[T]) -> list[T]:
    """Return this process's share of the items: every n-th one, which distributes long and short ones evenly."""
    return list(items[index() :: count()])


def pool(items: list[T]) -> list[T]:
    """Return the items of all processes, in order of rank. All processes must call this function."""
    if count() == 1:
        return items
    import torch.distributed as dist

    parts: list[list[T]] = [[] for _ in range(count())]
    dist.all_gather_object(parts, items, group=_group())
    return [item for part in parts for item in part]


def from_first(value: T) -> T:
    """Return the first process's value. All processes must call this function."""
    (first,) = pool([value] if is_first() else [])
    return first


def wait() -> None:
    """Wait until all processes call this function."""
    pool([None])


def leave() -> None:
    """Exit this process when all processes of the job have finished; return if there is only one process.

    Python's own exit sometimes aborts: it kills connection threads that are still releasing their last message.
    """
    if count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@cache
def _group() -> Any:
    # The job's own group has a shorter timeout, which detects hanging processes in training. Here, waiting for hours
    # is normal.
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState()
    return dist.new_group(timeout=PATIENCE)
