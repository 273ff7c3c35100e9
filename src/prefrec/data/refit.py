"""The data after validation: all that is known before test examples is there to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.candidates import SampledCandidates, pair_keys
from prefrec.data.rows import LazyExamples, RankingExample
from prefrec.data.types import PreparedData
from prefrec.data.update import MARK, replayed_users

PAIR = ["user_id", "item_id"]
PLACE = "place"
"""Column of an interaction's row in the training log."""


def with_validation(data: PreparedData) -> PreparedData:
    """Return the data with validation interactions and examples among those of training.

    The result has no validation examples, so that nothing can be chosen on what was learnt. Test examples and what
    their users saw stay as they are.
    """
    new = data.validation_interactions
    own = data.train_interactions.with_row_index(PLACE)
    log = pl.concat([own, new], how="diagonal").sort("user_id", "timestamp", maintain_order=True)
    later = data.held_out_interactions
    if later is not None:
        later = later.join(new, on=[*data.identity], how="anti", maintain_order="left")
    return replace(
        data,
        train=_training_examples(data, log),
        validation=[],
        unmeasured=None,
        train_interactions=log.drop(PLACE),
        held_out_interactions=later,
    )


def continued(data: PreparedData, longer: PreparedData, replay: float, seed: int) -> PreparedData:
    """Return `longer` for a model that has learnt `data`: it goes on with what is new, and a replay of what is old.

    As in an update, these interactions are marked (`MARK`), and training examples are those with marked targets.

    Args:
        data: what the model has learnt.
        longer: the same with later interactions (`with_validation`).
        replay: old interactions per new one. All old interactions of random users are marked, up to this ratio.
        seed: of the choice of these users.
    """
    log = longer.train_interactions.with_row_index(PLACE)
    is_new = ~np.isin(log[PLACE], log.join(data.train_interactions, on=[*data.identity], how="semi")[PLACE])
    runs = log["user_id"].rle().struct
    lengths = runs.field("len").to_numpy()
    users = np.repeat(np.arange(len(lengths)), lengths)
    replayed = replayed_users(users[~is_new], len(lengths), replay * is_new.sum(), seed)
    marked = is_new | np.isin(users, replayed)
    log = longer.train_interactions.with_columns(pl.Series(MARK, marked))
    return replace(longer, train=_with_targets(longer.train, log, marked), train_interactions=log)


def _with_targets(
    rows: Sequence[RankingExample], log: pl.DataFrame, marked: NDArray[np.bool_]
) -> Sequence[RankingExample]:
    """Return the examples whose targets are marked interactions [n] of the log."""
    if isinstance(rows, LazyExamples) and len(rows.items) == len(log):
        kept = marked[rows.target_positions]
        return replace(rows, target_positions=rows.target_positions[kept], _all=[])
    targets = set(log.filter(pl.Series(marked)).select(PAIR).iter_rows())
    return [e for e in rows if (e.user_id, e.target) in targets]


def _training_examples(data: PreparedData, log: pl.DataFrame) -> Sequence[RankingExample]:
    """Return the training examples and those of validation, of a longer log.

    Candidates that are sampled on access also make examples of the targets that validation leaves out. The column
    `PLACE` of the log has the row of each interaction in the training log; it is empty for new interactions.
    """
    train = data.train
    is_sampled = isinstance(train, LazyExamples) and isinstance(train.candidate_sets, SampledCandidates)
    if not isinstance(train, LazyExamples) or not is_sampled or len(train.items) != len(data.train_interactions):
        return [*train, *data.validation]
    # Users with new interactions have longer sequences, so that the positions of all targets move.
    was_target = np.zeros(len(train.items), dtype=bool)
    was_target[train.target_positions] = True
    is_new = log[PLACE].is_null().to_numpy()
    is_target = np.zeros(len(log), dtype=bool)
    is_target[~is_new] = was_target[log[PLACE].drop_nulls().to_numpy()]
    indexed, targets = log.with_row_index("at"), data.validation_targets
    at = np.isin(indexed["at"], indexed.join(targets, on=[*data.identity], how="semi")["at"])
    is_target |= is_new & at
    runs = log["user_id"].rle().struct
    users, lengths = runs.field("value"), runs.field("len").to_numpy()
    items = log["item_id"].cast(pl.Enum(train.ids)).to_physical().to_numpy().astype(np.int32)
    return replace(
        train,
        users=users,
        items=items,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        target_positions=np.flatnonzero(is_target),
        candidate_sets=_resampled(data, train, users, np.repeat(np.arange(len(users)), lengths), items),
        _all=[],
    )


def _resampled(
    data: PreparedData, train: LazyExamples, users: pl.Series, owners: NDArray[np.int64], items: NDArray[np.int32]
) -> SampledCandidates:
    """Return the sampler of training candidates, for the users and interactions of the longer log."""
    sampler, n_items = train.candidate_sets, len(train.ids)
    assert isinstance(sampler, SampledCandidates)
    if data.keeps_repeats:
        return replace(sampler, users=users)
    earlier, touched = np.divmod(sampler.touched[:-1], n_items)
    codes = {user: code for code, user in enumerate(users)}
    moved = np.array([codes.get(user, -1) for user in sampler.users], dtype=np.int64)[earlier]
    pairs = np.concatenate([moved[moved >= 0], owners]), np.concatenate([touched[moved >= 0], items])
    return replace(sampler, users=users, touched=pair_keys(pairs, n_items))
