"""Prepared data as the codes that a model of next items learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.rankers.matrices import pad_codes


@dataclass(frozen=True)
class Task:
    """Sequences to learn: training items have the codes 0 … n − 1, the catalogue's other items follow.

    Attributes:
        ids: [I] of the items, by code.
        known: n, the number of training items.
        sequences: codes of each training user's items, oldest first.
        histories: [B, L] codes of the validation rows' histories, oldest first, -1 in empty places at the end.
        targets: [B] codes.
        history_length: L, the longest history of the validation and test rows.
    """

    ids: list[str]
    known: int
    sequences: list[list[int]]
    histories: NDArray[np.int64]
    targets: NDArray[np.int64]
    history_length: int

    def shares(self) -> Tensor:
        """Return the share [n] of each training item in all training interactions, by code."""
        counts = np.bincount([c for s in self.sequences for c in s], minlength=self.known)
        return from_numpy(counts / counts.sum()).float()


def task_of(data: PreparedData, *, new_items: bool) -> Task:
    """Return the task of prepared data.

    Args:
        new_items: whether the model has vectors of items that training lacks. If not, histories leave them out, and
            rows with such a target or with nothing left are no validation rows.

    Raises:
        DataError: there is nothing to train on, or no validation row to choose the epoch by.
    """
    by_user = data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    taken = set(data.train_interactions["item_id"])
    ids = [i for i in data.catalogue.ids if i in taken]
    known = len(ids)
    if new_items:
        ids += [i for i in data.catalogue.ids if i not in taken]
    code = {item: n for n, item in enumerate(ids)}
    sequences = [[code[i] for i in items] for items in by_user.to_list()]
    if not any(len(s) > 1 for s in sequences):
        raise DataError("no user has two training interactions: there is no next item to learn from")
    rows = [([i for i in e.history if i in code], e.target) for e in data.validation if e.target in code]
    rows = [(history, target) for history, target in rows if history]
    if not rows:
        raise DataError(
            f"none of {len(data.validation)} validation rows has a history and a target that the model knows: there "
            "is nothing to choose the epoch by; prepare more validation rows, or more training interactions"
        )
    length = max(len(e.history) for e in (*data.validation, *data.test))
    histories = pad_codes([history for history, _ in rows], code)
    return Task(ids, known, sequences, histories, np.array([code[target] for _, target in rows]), length)
