"""The spread of a ranker's metrics over users, beside their mean over examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from prefrec.evaluation.intervals import Number, Result
from prefrec.evaluation.metrics import Floats, metrics_for
from prefrec.evaluation.predictions import ranks_of

K = 10
"""Cut-off of hits and NDCG."""


@dataclass(frozen=True, eq=False)
class UserSpread(Result):
    """The spread of one ranker's metrics over users.

    Attributes:
        users: number of users.
        with_hit: share of users with at least one target in the top ten.
        deciles: [9] NDCG@10 that 10%, 20%, … 90% of users reach at most; that of a user is the mean of the examples.
        gini: Gini index of the users' NDCG@10: 0 if all users have the same, near 1 if few have all of it; NaN
            if all have 0.
    """

    users: int
    with_hit: float
    deciles: list[float]
    gini: Number


def user_spread(predictions: pl.DataFrame) -> dict[str, UserSpread]:
    """Return ranker → its spread over users, for a frame of `PREDICTION_SCHEMA`; in expectation over ties."""
    found = {}
    for part in predictions.partition_by("ranker", maintain_order=True):
        hit, ndcg = (metrics_for([K])[f"{name}@{K}"](*ranks_of(part)) for name in ("hr", "ndcg"))
        rows = part.select("user_id", missed=1 - pl.Series(hit), ndcg=pl.Series(ndcg))
        users = rows.group_by("user_id", maintain_order=True).agg(pl.col("missed").product(), pl.col("ndcg").mean())
        values = users["ndcg"].to_numpy()
        found[str(part["ranker"][0])] = UserSpread(
            users=len(users),
            with_hit=float(1 - users["missed"].to_numpy().mean()),
            deciles=np.quantile(values, np.arange(1, 10) / 10, method="inverted_cdf").tolist(),
            gini=gini(values),
        )
    return found


def gini(values: Floats) -> float:
    """Return the Gini index of values [B] that are at least 0: half the mean difference of two, over the mean.

    NaN if all values are 0.
    """
    total = values.sum()
    if not total:
        return float("nan")
    n = len(values)
    places = np.arange(1, n + 1)
    return float(((2 * places - n - 1) * np.sort(values)).sum() / (n * total))
