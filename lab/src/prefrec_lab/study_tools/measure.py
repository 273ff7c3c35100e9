"""Quantities per example, averaged over seeds, with intervals over users and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import Interval, PairedDifference, metrics_for
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.intervals import holm as corrected
from prefrec.evaluation.labels import HEADLINE_METRICS
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.opened import Run

Values = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Name of a variant → quantity → values [S, B] of S seeds and B questions."""

Groups = Mapping[str, NDArray[np.bool_]]
"""Name of a group → which rows [B] belong to it."""


@dataclass(frozen=True)
class Measured:
    """The measurements of all variants."""

    # variant → quantity → mean over seeds and rows, with its interval over users
    intervals: dict[str, dict[str, Interval]]
    # variant → quantity → variant minus baseline on the same rows; without the baseline itself
    differences: dict[str, dict[str, PairedDifference]]
    by_seed: dict[str, dict[str, list[float]]]  # variant → quantity → mean of each seed
    baseline: str | None  # variant that the others are compared with; None: nothing is compared
    # n, users: rows, and distinct users among them
    n: int
    users: int

    @property
    def quantities(self) -> list[str]:
        """All quantities, in the order they were given."""
        return list(dict.fromkeys(q for intervals in self.intervals.values() for q in intervals))

    @property
    def headline(self) -> list[str]:
        """HR@1 and NDCG@10 if they were measured, else the first quantity."""
        return [q for q in HEADLINE_METRICS if q in self.quantities] or self.quantities[:1]


def holm(differences: Mapping[str, PairedDifference]) -> dict[str, float]:
    """Return the p-values of differences, corrected for their number (Holm, 1979)."""
    return dict(zip(differences, corrected([d.p_value for d in differences.values()]), strict=True))


def measure(values: Values, users: Sequence[str], *, baseline: str | None = None) -> Measured:
    """Return means over seeds and rows, and differences to `baseline`, with intervals over users.

    The interval says how much the choice of users matters. It does not cover the choice of seed: see `by_seed`.

    Args:
        values: of all variants, [S, B].
        users: of the rows, [B].
        baseline: a variant. Without one, there are no differences.
    """
    keys = [(name, quantity) for name, quantities in values.items() for quantity in quantities]
    means = {key: values[key[0]][key[1]].mean(axis=0) for key in keys}
    found = Means(means, users)
    differences: dict[str, dict[str, PairedDifference]] = {}
    for name, quantities in values.items():
        if baseline is None or name == baseline:
            continue
        common = [quantity for quantity in quantities if (baseline, quantity) in means]
        differences[name] = {q: found.difference((name, q), (baseline, q)) for q in common}
    return Measured(
        found.table(),
        differences,
        {n: {q: v.mean(axis=1).tolist() for q, v in quantities.items()} for n, quantities in values.items()},
        baseline,
        *found.size,
    )


def ranker_predictions(runs: Sequence[Run], rankers: Iterable[str] | None = None) -> dict[str, list[pl.DataFrame]]:
    """Return ranker → its predictions in each run, sorted by row.

    Args:
        rankers: names. Default: all that every run has.

    Raises:
        DataError: a run lacks a ranker, or the runs were asked different questions.
    """
    frames = [run.predictions() for run in runs]
    known = [f["ranker"].unique(maintain_order=True).to_list() for f in frames]
    names = [n for n in known[0] if all(n in k for k in known)] if rankers is None else list(rankers)
    for run, k in zip(runs, known, strict=True):
        if missing := [n for n in names if n not in k]:
            raise DataError(f"{run.folder}: no predictions of {', '.join(missing)}; there are {', '.join(k)}")
    predictions = {n: [f.filter(pl.col("ranker") == n).sort("row") for f in frames] for n in names}
    question = ["row", "user_id", "target", "candidates"]
    for frame, run in zip(predictions[names[0]] if names else [], runs, strict=False):
        if not frame.select(question).equals(predictions[names[0]][0].select(question)):
            raise _different(runs[0], run)
    return predictions


def users_of(predictions: Mapping[str, Sequence[pl.DataFrame]]) -> list[str]:
    """Return the user of each row of predictions (`ranker_predictions`)."""
    return next(iter(predictions.values()))[0]["user_id"].to_list()


def measure_runs(runs: Sequence[Run], baseline: str | None, rankers: Iterable[str] | None = None) -> Measured:
    """Measure the ranking of these rankers in the runs, or of all that every run has."""
    predictions = ranker_predictions(runs, rankers)
    values = ranking_values(predictions, runs[0].recipe.evaluate.ks)
    return measure(values, users_of(predictions), baseline=baseline)


def same_rows(runs: Sequence[Run], rows: Callable[[Run], list[RankingExample]]) -> list[RankingExample]:
    """Return the examples that every run scored.

    Raises:
        DataError: they differ between runs.
    """
    first = rows(runs[0])
    for run in runs[1:]:
        if rows(run) != first:
            raise _different(runs[0], run)
    return first


def _different(first: Run, other: Run) -> DataError:
    return DataError(f"{first.folder} and {other.folder} were asked different questions, so they cannot be paired")


def ranking_values(predictions: Mapping[str, Sequence[pl.DataFrame]], ks: Sequence[int]) -> Values:
    """Return HR@K, NDCG@K and MRR of predictions (`ranker_predictions`)."""
    table = metrics_for(ks)
    return {
        name: {m: np.stack([f(*ranks_of(frame)) for frame in frames]) for m, f in table.items()}
        for name, frames in predictions.items()
    }


def stacked(seeds: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Return quantity → values [S, B] of quantity → values [B] of each seed."""
    return {q: np.stack([seed[q] for seed in seeds]) for q in seeds[0]}


def groups_of(names: Sequence[str], order: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return groups from the name of each row's group [B], in this order, without groups that have no rows."""
    groups = {g: np.array([n == g for n in names], dtype=bool) for g in order}
    return {g: own for g, own in groups.items() if own.any()}


def measure_groups(values: Values, users: Sequence[str], groups: Groups, baseline: str | None) -> dict[str, Measured]:
    """Return the result of `measure` for the rows of each group that has any."""
    measured = {}
    for group, is_member in groups.items():
        if is_member.any():
            of_group = {n: {m: v[:, is_member] for m, v in quantities.items()} for n, quantities in values.items()}
            members = [users[row] for row in np.flatnonzero(is_member).tolist()]
            measured[group] = measure(of_group, members, baseline=baseline)
    return measured
