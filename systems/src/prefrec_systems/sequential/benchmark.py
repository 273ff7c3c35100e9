"""Prepared data as hopwise's benchmark files, so that hopwise takes our splits.

A row is a user, the items before, and the next item:

    user_id:token   item_id_list:token_seq   item_id:token
    7               15 3 88                  4

Tokens are positions, from 1, in `Vocabulary.items` and `Vocabulary.users`. Only items and users of training rows
have one. Other items are left out of histories. Rows with another target, or with nothing left in their history, are
not written. Users without training rows share the token 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.files import write_whole

DATASET = "prefrec"
"""Name of the files and their folder, as hopwise requires: `prefrec/prefrec.train.inter`."""
PARTS = ("train", "valid", "test")
UNKNOWN_USER = 0
Row = tuple[str, Sequence[str], str]
"""User id, item ids of the history (oldest first), item id of the target."""


@dataclass(frozen=True)
class Vocabulary:
    """The items and users that a model knows, and the longest history that it reads.

    Attributes:
        items: ids in the order of the catalogue.
        users: ids in the order of the log.
        history_length: items; hopwise calls it MAX_ITEM_LIST_LENGTH.
    """

    items: list[str]
    users: list[str]
    history_length: int

    @cached_property
    def item_tokens(self) -> dict[str, int]:
        """Item id → token, from 1."""
        return {item: n for n, item in enumerate(self.items, 1)}

    @cached_property
    def user_tokens(self) -> dict[str, int]:
        """User id → token, from 1."""
        return {user: n for n, user in enumerate(self.users, 1)}

    def known(self, history: Iterable[str]) -> list[int]:
        """Return the tokens of the last `history_length` known items of a history."""
        tokens = [self.item_tokens[item] for item in history if item in self.item_tokens]
        return tokens[-self.history_length :]


def write_benchmark(data: PreparedData, folder: Path) -> Vocabulary:
    """Write `prefrec/prefrec.{train,valid,test}.inter` to `folder`; return the vocabulary.

    Training rows are all prefixes of each user's training interactions, cut to the longest history under test.
    hopwise's own augmentation would make the same. Validation and test rows are those of the data. If no test row can
    be answered, the validation rows take their place, because hopwise needs three files.

    Raises:
        DataError: there are no training rows, or no validation row with a known target and history.
    """
    examples = {"valid": data.validation, "test": data.test}
    longest = max((len(e.history) for rows in examples.values() for e in rows), default=0)
    train = list(prefixes(data.train_interactions, longest))
    if not train:
        raise DataError("no user has two training interactions: a sequential recommender has nothing to learn from")
    seen = {item for _, history, target in train for item in (*history, target)}
    users = list(dict.fromkeys(user for user, _, _ in train))
    vocabulary = Vocabulary([i for i in data.catalogue.ids if i in seen], users, longest)
    rows = {"train": tokens_of(train, vocabulary)}
    for part, split in examples.items():
        rows[part] = tokens_of(((e.user_id, e.history, e.target) for e in split), vocabulary)
    if not rows["valid"]:
        raise DataError(
            f"none of {len(data.validation)} validation rows has a target and a history that occur in training: "
            "there is nothing to choose the epoch by; prepare the data with more training interactions"
        )
    (folder / DATASET).mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        _write(rows[part] or rows["valid"], folder / DATASET / f"{DATASET}.{part}.inter")
    length = max(len(history) for split in rows.values() for _, history, _ in split)
    return Vocabulary(vocabulary.items, users, length)


def prefixes(interactions: pl.DataFrame, history_length: int) -> Iterator[Row]:
    """Yield each interaction of a user but the first, with at most `history_length` items before it.

    Args:
        interactions: frame `user_id, item_id, …`, sorted by user and time.
    """
    users, items = interactions["user_id"].to_list(), interactions["item_id"].to_list()
    start = 0
    for end in range(1, len(users)):
        if users[end] != users[start]:
            start = end
        else:
            yield users[end], items[max(start, end - history_length) : end], items[end]


def tokens_of(rows: Iterable[Row], vocabulary: Vocabulary) -> list[tuple[int, list[int], int]]:
    """Return the rows in tokens, without rows whose target or whole history is unknown."""
    tokens = (
        (
            vocabulary.user_tokens.get(user, UNKNOWN_USER),
            vocabulary.known(history),
            vocabulary.item_tokens.get(target),
        )
        for user, history, target in rows
    )
    return [(user, history, target) for user, history, target in tokens if history and target]


def _write(rows: Sequence[tuple[int, list[int], int]], path: Path) -> None:
    columns = {
        "user_id:token": [user for user, _, _ in rows],
        "item_id_list:token_seq": [" ".join(map(str, history)) for _, history, _ in rows],
        "item_id:token": [target for _, _, target in rows],
    }
    write_whole(path, lambda p: pl.DataFrame(columns).write_csv(p, separator="\t"))
