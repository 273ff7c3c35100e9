"""The part of a longer log that an update learns from: new interactions, and a replay of old ones."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.splits import Sequences, Split
from prefrec.data.types import TESTED
from prefrec.errors import DataError

MARK = "update"
"""Boolean column of training interactions, in an update or a refit: true for those that SFT goes on with."""


def update_split(
    sequences: Sequences,
    split: Split,
    learnt: pl.DataFrame,
    held_out: pl.DataFrame,
    replay: float,
    seed: int,
) -> Split:
    """Return the split of an update: training interactions with a mark, and training examples with marked targets.

    Raise DataError if there are no new interactions.

    Args:
        sequences, split: of the longer log.
        learnt: training interactions of the earlier run. Others are new, and marked.
        held_out: interactions to remove from those of training and from the validation examples. Its columns identify
            an interaction (`PreparedData.identity`).
        replay: old interactions per new one. All old interactions of random users are marked, up to this ratio.
        seed: of the choice of these users.
    """
    identity = held_out.schema
    log = sequences.frame.select(pl.col(c).cast(kind) for c, kind in identity.items()).with_row_index("index")

    def mask(other: pl.DataFrame) -> NDArray[np.bool_]:
        return np.isin(log["index"], log.join(other, on=[*identity], how="semi")["index"])

    tested = mask(held_out)
    train = split.learn & ~tested
    new = train & ~mask(learnt)
    if not new.any():
        raise DataError(
            "update: there is no new interaction to learn from: the log has none, or they all belong to validation "
            "and test; add more"
        )
    users = np.repeat(np.arange(len(sequences.users)), sequences.lengths)
    replayed = replayed_users(users[train & ~new], len(sequences.users), replay * new.sum(), seed)
    marked = train & (new | np.isin(users, replayed))
    kept = {"train": marked, "validation": ~tested, "test": np.ones_like(tested)}
    rows = {}
    for name, split_rows in split.rows.items():
        positions = sequences.offsets[split_rows[:, 0]] + split_rows[:, 1]
        rows[name] = split_rows[kept[name][positions]]
    counts = {"new": int(new.sum()), "replayed": int((marked & ~new).sum()), "held_out": int(tested.sum())}
    learn = sequences.frame.with_columns(pl.Series(MARK, marked)).filter(pl.Series(train))
    facts = {"update": counts, TESTED: log.filter(pl.Series(tested)).select(*identity).rows()}
    return Split(rows, train, learn, split.facts | facts)


def replayed_users(owners: NDArray[np.int64], users: int, most: float, seed: int) -> NDArray[np.int64]:
    """Return random users who together have at most `most` old interactions.

    Args:
        owners: the user [n] of each old interaction, as a number.
        users: number of users.
        most: number of old interactions to replay.
        seed: of the choice.
    """
    order = np.random.default_rng([seed, 7]).permutation(users)
    counts = np.bincount(owners, minlength=users)
    return order[np.cumsum(counts[order]) <= most]


def read_by_sft(interactions: pl.DataFrame, titles: int) -> pl.DataFrame:
    """Return the interactions that SFT reads: in an update, each user's from `titles` before the first marked one."""
    if MARK not in interactions.columns:
        return interactions
    index = pl.int_range(pl.len())
    return interactions.filter((index >= index.filter(pl.col(MARK)).min() - titles).over("user_id"))
