"""Evaluate scores that any software has written: metrics by user with intervals, and paired differences.

    scores (user, item, score) × targets (user, item, gain) → values per user → intervals and comparisons

A user may have several targets. The metrics are then those of trec_eval: `ndcg@K` with the gain of each target and
the ideal order of them, `recall@K`, `hr@K` (its success@K) and `mrr`. A target without a score was not retrieved.
Items with equal scores are in random order, so values are expectations over it, where trec_eval orders them by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.errors import ConfigError, DataError, first_words
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats, metrics_for
from prefrec.evaluation.outcome import Evaluation, compare_columns, corrected
from prefrec.evaluation.verdict import NoAudit

NOT_AUDITED = NoAudit(
    "scores from elsewhere do not tell how their candidates were made, which may give the targets away"
)


@dataclass(frozen=True)
class Scored:
    """The evaluation of runs, and what was not scored.

    Attributes:
        evaluation: with a row per run; each run is compared with the first one.
        without_scores: run → number of users with targets of whom it has no score. They count with 0.
        without_targets: run → number of users whom it scores and who have no target. They are left out.
        several: number of users with more than one target.
    """

    evaluation: Evaluation
    without_scores: dict[str, int]
    without_targets: dict[str, int]
    several: int


def evaluate_scores(runs: Mapping[str, Any], targets: Any, ks: Sequence[int] = (10,)) -> Scored:
    """Evaluate the scores of one or more runs on the same targets.

    If each user has one target, intervals are over users and targets, otherwise over users.

    Args:
        runs: name → frame with `user_id`, `item_id` and `score`, each pair once: of polars, pandas, or anything that
            offers itself as Arrow, such as a table of pyarrow or a relation of DuckDB.
        targets: frame with `user_id`, `item_id`, and `gain` > 0, each pair once.
        ks: cut-offs of HR, recall and NDCG.

    Raises:
        ConfigError: a cut-off is not a whole number from 1, or there is no run.
        DataError: there are no targets, a run has no score of any user with targets, or a frame lacks a column, has a
            value that is not a finite number, or has a pair twice.
    """
    metrics_for(ks)  # which refuses wrong cut-offs
    if not runs:
        raise ConfigError("nothing to evaluate: give the scores of at least one run")
    wanted = _by_user(_checked("targets", targets, "gain"), "gain")
    if not wanted:
        raise DataError("nothing to evaluate: the targets are empty")
    users = sorted(wanted)
    values: dict[tuple[str, str], Floats] = {}
    unscored, untargeted = {}, {}
    for name, given in runs.items():
        scores = _checked(name, given, "score")
        kept = scores.filter(pl.col("user_id").is_in(users))
        listed = _by_user(kept, "score")
        if not listed:
            one, other = scores["user_id"].first(), users[0]
            raise DataError(
                f"{name}: none of its users has a target; ids must be written alike, as {one!r} in the scores and "
                f"{other!r} in the targets are not"
            )
        rows = [user_values(listed.get(user, {}), wanted[user], ks) for user in users]
        values |= {(name, metric): np.array([row[metric] for row in rows]) for metric in rows[0]}
        unscored[name] = len(users) - len(listed)
        untargeted[name] = scores["user_id"].n_unique() - len(listed)
    several = sum(len(of) > 1 for of in wanted.values())
    means = Means(values, users, None if several else [next(iter(wanted[user])) for user in users])
    first, *others = runs
    comparisons = corrected(compare_columns(means, [(name, first) for name in others]))
    evaluation = Evaluation(means.table(), *means.size, {}, comparisons, float("nan"), NOT_AUDITED, items=means.items)
    return Scored(evaluation, unscored, untargeted, several)


def _checked(name: str, given: Any, value: str) -> pl.DataFrame:
    """Return `user_id`, `item_id` (text) and `value` of a frame of any library; raise DataError if it is unfit."""
    try:
        frame = given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as e:
        raise DataError(
            f"{name}: expected a frame of polars, pandas or Arrow, got {type(given).__name__}: {first_words(e)}"
        ) from None
    if missing := [column for column in ("user_id", "item_id", value) if column not in frame.columns]:
        raise DataError(f"{name}: no column {', '.join(missing)} among {', '.join(frame.columns)}; rename yours")
    ids, number = pl.col("user_id", "item_id").cast(pl.String), pl.col(value).cast(pl.Float64, strict=False)
    frame = frame.select(ids, number)
    for unfit, what in (
        (frame["user_id"].is_null() | frame["item_id"].is_null(), "no user or no item"),
        (~frame[value].is_finite().fill_null(False), f"no finite number as its {value}"),
        (~frame.select(pl.struct("user_id", "item_id").is_first_distinct()).to_series(), "an earlier pair again"),
    ):
        if unfit.any():
            raise DataError(f"{name}, row {unfit.arg_true()[0]}: {what} ({unfit.sum():,} rows); correct or drop them")
    return frame


def _by_user(frame: pl.DataFrame, value: str) -> dict[str, dict[str, float]]:
    """Return user → item → value."""
    found: dict[str, dict[str, float]] = {}
    for user, item, number in frame.select("user_id", "item_id", value).iter_rows():
        found.setdefault(user, {})[item] = number
    return found


def user_values(scores: Mapping[str, float], gains: Mapping[str, float], ks: Sequence[int]) -> dict[str, float]:
    """Return the metrics of one user, in expectation over the order of items with equal scores.

    Args:
        scores: item → score, higher is better.
        gains: target → gain > 0, at least one.
        ks: cut-offs.
    """
    tied = _tied(scores, gains)
    before, first = 0, np.zeros(0)
    for size, relevant, _ in tied:
        if relevant:
            first = _first_places(size, relevant)
            break
        before += size
    places = before + np.arange(1, 1 + len(first))
    found = {f"hr@{k}": float(first[places <= k].sum()) for k in ks}
    found |= {f"recall@{k}": _at(tied, k, np.ones(k), 1) / len(gains) for k in ks}
    ideal = -np.sort(-np.array([*gains.values()]))
    for k in ks:
        discounts = 1 / np.log2(np.arange(2, k + 2))
        found[f"ndcg@{k}"] = _at(tied, k, discounts, 2) / float((ideal[:k] * discounts[: len(ideal)]).sum())
    return found | {"mrr": float((first / places).sum())}


Tied = list[tuple[int, int, float]]
"""Groups of items with equal scores, best first: number of items, of targets among them, and sum of their gains."""


def _tied(scores: Mapping[str, float], gains: Mapping[str, float]) -> Tied:
    values = np.array([*scores.values()], dtype=np.float64)
    of_item = np.array([gains.get(item, 0.0) for item in scores])
    groups, codes = np.unique(-values, return_inverse=True)
    sums = (np.bincount(codes, weights, len(groups)).tolist() for weights in (None, of_item > 0, of_item))
    return [(int(size), int(relevant), gain) for size, relevant, gain in zip(*sums, strict=True)]


def _at(tied: Tied, k: int, weights: NDArray[np.float64], of: int) -> float:
    """Return Σ over the first k places of weight × expected value there: of targets (`of` 1) or of gains (2)."""
    total, before = 0.0, 0
    for group in tied:
        total += group[of] / group[0] * float(weights[before : before + group[0]].sum())
        before += group[0]
        if before >= k:
            break
    return total


def _first_places(size: int, relevant: int) -> NDArray[np.float64]:
    """Return the probability that the first target among `size` items in random order is at each place, from 1."""
    ways = [comb(size - place, relevant - 1) for place in range(1, size - relevant + 2)]
    return np.array([way / comb(size, relevant) for way in ways])
