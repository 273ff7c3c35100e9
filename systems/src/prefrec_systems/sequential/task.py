"""Prepared data as item codes for training next-item models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from prefrec.data import PreparedData, seen_items
from prefrec.errors import DataError
from prefrec.rankers.matrices import pad_codes


@dataclass(frozen=True, eq=False)
class Task:
    """Sequences to learn. Training items have the codes 0 … n − 1; the catalogue's other items follow.

    Attributes:
        ids: [I] item ids by code.
        known: n, the number of training items.
        sequences: item codes of each training user, oldest first.
        histories: [B, L] item codes of the validation histories, oldest first; -1 in empty columns at the end.
        targets: [B] item codes of the validation targets.
        seen: [B] item codes that are not ranked, as in full ranking: those that the user saw before the target,
            unless the data keep repeats.
        history_length: L, the longest history of validation and test examples.
    """

    ids: list[str]
    known: int
    sequences: list[list[int]]
    histories: NDArray[np.int64]
    targets: NDArray[np.int64]
    seen: list[list[int]]
    history_length: int

    def shares(self) -> Tensor:
        """Return the share [n] of each training item in all training interactions, by code."""
        counts = np.bincount([c for s in self.sequences for c in s], minlength=self.known)
        return from_numpy(counts / counts.sum()).float()


def task_of(data: PreparedData, *, new_items: bool, is_refit: bool = False) -> Task:
    """Return the task of prepared data.

    Args:
        data: prepared data.
        new_items: whether the model has vectors of items without training interactions. If not, such items are
            removed from histories, and validation examples with such a target or an empty history are skipped.
        is_refit: whether the number of epochs is known, so that no validation example is needed.

    Raises:
        DataError: there is nothing to train on, or no validation example to choose the epoch.
    """
    by_user = data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    trained = set(data.train_interactions["item_id"])
    ids = [i for i in data.catalogue.ids if i in trained]
    known = len(ids)
    if new_items:
        ids += [i for i in data.catalogue.ids if i not in trained]
    code = {item: n for n, item in enumerate(ids)}
    sequences = [[code[i] for i in items] for items in by_user.to_list()]
    if not any(len(s) > 1 for s in sequences):
        raise DataError("no user has two training interactions: there is no next item to learn from")
    rows = [e for e in data.validation if e.target in code and any(i in code for i in e.history)]
    if not rows and not is_refit:
        raise DataError(
            f"none of {len(data.validation)} validation examples has a history and a target that the model knows, so "
            "they cannot choose the epoch: prepare more validation examples, or more training interactions"
        )
    length = max(len(e.history) for e in (*data.validation, *data.test))
    histories = pad_codes([[i for i in e.history if i in code] for e in rows], code)
    targets = np.array([code[e.target] for e in rows], dtype=np.int64)
    seen = [
        [code[i] for i in items if i in code and i != e.target]
        for e, items in zip(rows, seen_items(data, rows), strict=True)
    ]
    return Task(ids, known, sequences, histories, targets, seen, length)
