"""The part of a longer log that an update learns from: what is new, and a replay of what is old."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.splits import Sequences, Split
from prefrec.errors import DataError

MARK = "update"
"""Boolean column of the training interactions of an update: those that SFT and training rows are made of."""


def update_split(
    sequences: Sequences,
    split: Split,
    learnt: pl.DataFrame,
    held: Iterable[tuple[str, str]],
    replay: float,
    seed: int,
) -> Split:
    """Return the split of an update, with marked training interactions, and only the training rows of marked targets.

    Marked are interactions that are not in `learnt`, and all of random users who have `replay` times as many old
    ones. The pairs `held` (user, item) leave the training interactions and the validation rows. Raise DataError if
    nothing is new.
    """
    pair = {"user_id": pl.String, "item_id": pl.String}
    log = sequences.frame.select(pl.col(c).cast(kind) for c, kind in pair.items()).with_row_index("place")

    def mask(other: pl.DataFrame) -> NDArray[np.bool_]:
        return np.isin(log["place"], log.join(other, on=[*pair], how="semi")["place"])

    tested = mask(pl.DataFrame(list(held), pair, orient="row"))
    train = split.learn & ~tested
    new = train & ~mask(learnt)
    if not new.any():
        raise DataError(
            "update: no new interaction is left to learn from: the log holds none, or validation and test take them; "
            "add more"
        )
    users = np.repeat(np.arange(len(sequences.users)), sequences.lengths)
    order = np.random.default_rng([seed, 7]).permutation(len(sequences.users))
    old = np.bincount(users[train & ~new], minlength=len(order))
    marked = train & (new | np.isin(users, order[np.cumsum(old[order]) <= replay * new.sum()]))
    kept = {"train": marked, "validation": ~tested, "test": np.ones_like(tested)}
    rows = {part: own[kept[part][sequences.offsets[own[:, 0]] + own[:, 1]]] for part, own in split.rows.items()}
    counts = {"new": int(new.sum()), "replayed": int((marked & ~new).sum()), "held_out": int(tested.sum())}
    learn = sequences.frame.with_columns(pl.Series(MARK, marked)).filter(pl.Series(train))
    return Split(rows, train, learn, split.facts | {"update": counts})


def read_by_sft(interactions: pl.DataFrame, titles: int) -> pl.DataFrame:
    """Return the interactions that SFT reads: all, or each user's from `titles` before the first that is marked."""
    if MARK not in interactions.columns:
        return interactions
    place = pl.int_range(pl.len())
    return interactions.filter((place >= place.filter(pl.col(MARK)).min() - titles).over("user_id"))
