"""The examples that a training stage chooses from, and those that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.data.rows import LazyExamples, latest_rows, take
from prefrec.errors import ConfigError
from prefrec.sections import AlignSection
from prefrec.stages.negatives import answer_scores, log_rows, log_validation_rows
from prefrec.training.negatives import resample_negatives, with_room
from prefrec.training.section import RowsSection, TrainSection

Row = TypeVar("Row")


def validation_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """Return `eval_rows` validation examples of an alignment, with at least as many negatives as in training."""
    if section.is_from_log:
        return log_validation_rows(data, section, seed)
    rows = data.examples("validation", section.eval_rows)
    size = 1 + section.num_negatives
    if section.drawn_from is None or all(len(e.candidates) >= size for e in rows):
        return list(rows)
    # Always sample uniformly, so that alignments with different negatives have comparable curves.
    return resample_negatives(with_room(rows, data, size - 1), data, "uniform", seed=seed, size=size)


def alignment_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """Return the examples, of `alignment_pool`, that an alignment trains on, one by one or in packed sequences."""
    take_some = some_trajectories if is_packed(data, section) else some_rows
    return take_some(alignment_pool(data, section, seed), section, seed)


def alignment_pool(data: PreparedData, section: AlignSection, seed: int = 0) -> Sequence[RankingExample]:
    """Return all examples that an alignment chooses from: of the data, or made from the log with `seed`.

    Raise ConfigError if `trajectories` is set but some position of a history has no example. Raise DataError if the
    loss needs ratings but the log has none.
    """
    is_packed(data, section)  # this and the next line raise errors before training
    answer_scores([], data, section)
    rows = log_rows(data, section, seed) if section.is_from_log else data.train
    return latest_rows(rows, section.latest_per_user)


def training_rows(data: PreparedData, section: RowsSection, seed: int) -> list[RankingExample]:
    """Return the examples of the data that a stage other than an alignment trains on."""
    return some_rows(latest_rows(data.train, section.latest_per_user), section, seed)


def is_packed(data: PreparedData, section: AlignSection) -> bool:
    """Return True if an alignment trains on packed sequences; raise ConfigError if it should but cannot."""
    is_whole = isinstance(data.train, LazyExamples) and len(data.train.users) < len(data.train)
    if section.trajectories and not (is_whole and section.has_all_positions):
        raise ConfigError(
            f"align.{section.name}.trajectories needs an example at every position of a history: remove it, or "
            "latest_per_user, negatives from the log, and data that come with their own training examples"
        )
    return is_whole and section.is_packed


def some_rows(rows: Sequence[Row], section: TrainSection, seed: int) -> list[Row]:
    """Return rows `skip_rows … skip_rows + rows` of one seeded order, so that stages can use disjoint rows."""
    order = np.random.default_rng((seed, 1)).permutation(len(rows))
    end = None if section.rows is None else section.skip_rows + section.rows
    return take(rows, order[section.skip_rows : end])


def some_trajectories(rows: Sequence[RankingExample], section: AlignSection, seed: int) -> list[RankingExample]:
    """Return examples as `some_rows` does, but shuffle whole sequences (`LazyExamples.pieces`)."""
    assert isinstance(rows, LazyExamples)  # `is_packed` says so
    numbers, pieces = np.unique(rows.pieces(), return_inverse=True)
    order = np.random.default_rng((seed, 1)).permutation(len(numbers))[pieces]
    end = None if section.rows is None else section.skip_rows + section.rows
    return replace(rows, by_piece=True, _all=[]).take(np.argsort(order, kind="stable")[section.skip_rows : end])


def print_fewer(name: str, section: TrainSection, count: int) -> None:
    """Print a message if a stage has fewer examples than its `rows`."""
    if section.rows is not None and count < section.rows:
        after = f" after skip_rows: {section.skip_rows}" if section.skip_rows else ""
        say(f"{name}: training on {count} examples, not {section.rows}: there are no more{after}")
