"""Quantities a row, averaged over seeds, with intervals over users and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import Interval, PairedDifference, bootstrap_means, metrics_for
from prefrec.evaluation.intervals import RESAMPLES, difference_of, interval_of
from prefrec.evaluation.tables import HEADLINE_METRICS
from prefrec.pipeline.opened import Run

Values = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Name of a variant → quantity → values [S, B]: a row of S seeds, a column of B questions."""


@dataclass(frozen=True)
class Measured:
    """What was measured of each variant.

    Attributes:
        intervals: variant → quantity → mean over seeds and rows, with its interval over users.
        differences: variant → quantity → variant minus baseline on the same rows; without the baseline itself.
        by_seed: variant → quantity → mean of each seed.
        baseline: what the others are compared with; None: nothing is compared.
        n, users: rows, and distinct users among them.
    """

    intervals: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, PairedDifference]]
    by_seed: dict[str, dict[str, list[float]]]
    baseline: str | None
    n: int
    users: int

    @property
    def quantities(self) -> list[str]:
        """All quantities, in the order they were given."""
        return list(dict.fromkeys(q for of in self.intervals.values() for q in of))

    @property
    def headline(self) -> list[str]:
        """HR@1 and NDCG@10 where they were measured, else the first quantity."""
        return [q for q in HEADLINE_METRICS if q in self.quantities] or self.quantities[:1]


def measure(
    values: Values,
    users: Sequence[str],
    *,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measured:
    """Means over seeds and rows, and differences to `baseline`, all from the same resamples of the users.

    The interval says what other users would change. It does not say what other seeds would: see `by_seed`.

    Args:
        values: of all variants, [S, B].
        users: whose rows they are, [B].
        baseline: a variant; None: no differences.
        seed: of the bootstrap.
    """
    keys = [(name, quantity) for name, of in values.items() for quantity in of]
    means = {key: values[key[0]][key[1]].mean(axis=0) for key in keys}
    draws = bootstrap_means(np.stack([means[k] for k in keys], axis=1), users, resamples, seed)
    column = {key: draws[:, i] for i, key in enumerate(keys)}
    size = (len(users), len(set(users)))

    def difference(name: str, quantity: str, against: str) -> PairedDifference:
        gap = means[name, quantity] - means[against, quantity]
        return difference_of(float(gap.mean()), column[name, quantity] - column[against, quantity], *size)

    compared = [n for n in values if baseline is not None and n != baseline]
    return Measured(
        {n: {q: interval_of(float(means[n, q].mean()), column[n, q], *size) for q in of} for n, of in values.items()},
        {n: {q: difference(n, q, str(baseline)) for q in values[n] if (baseline, q) in means} for n in compared},
        {n: {q: v.mean(axis=1).tolist() for q, v in of.items()} for n, of in values.items()},
        baseline,
        *size,
    )


def of_rankers(runs: Sequence[Run], rankers: Iterable[str] | None = None) -> dict[str, list[pl.DataFrame]]:
    """Ranker → its predictions in each run, by row.

    Args:
        runs: one a seed.
        rankers: names; None: all that every run has.

    Raises:
        DataError: a run lacks a ranker, or the runs were asked different questions.
    """
    frames = [run.predictions() for run in runs]
    known = [f["ranker"].unique(maintain_order=True).to_list() for f in frames]
    names = [n for n in known[0] if all(n in k for k in known)] if rankers is None else list(rankers)
    for run, k in zip(runs, known, strict=True):
        if lacking := [n for n in names if n not in k]:
            raise DataError(f"{run.folder}: no predictions of {', '.join(lacking)}; there are {', '.join(k)}")
    found = {n: [f.filter(pl.col("ranker") == n).sort("row") for f in frames] for n in names}
    asked = ["row", "user_id", "target", "candidates"]
    for frame, run in zip(found[names[0]] if names else [], runs, strict=False):
        if not frame.select(asked).equals(found[names[0]][0].select(asked)):
            raise _unlike(runs[0], run)
    return found


def same_rows(runs: Sequence[Run], rows: Callable[[Run], list[RankingExample]]) -> list[RankingExample]:
    """The rows that every run is asked.

    Args:
        runs: one a seed.
        rows: those of a run.

    Raises:
        DataError: they are not the same in all.
    """
    first = rows(runs[0])
    for run in runs[1:]:
        if rows(run) != first:
            raise _unlike(runs[0], run)
    return first


def _unlike(first: Run, other: Run) -> DataError:
    return DataError(f"{first.folder} and {other.folder} were asked different questions: nothing to pair")


def ranking_values(predictions: Mapping[str, Sequence[pl.DataFrame]], ks: Sequence[int]) -> Values:
    """HR@K, NDCG@K and MRR of predictions (`of_rankers`)."""
    table = metrics_for(ks)
    return {
        name: {
            m: np.stack([f(frame["rank"].to_numpy().astype(np.int64)) for frame in frames]) for m, f in table.items()
        }
        for name, frames in predictions.items()
    }
