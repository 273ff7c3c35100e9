"""Baselines that use only the time of an example, not the user: recent popularity, and newest items first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.item_features import DAYS, Feature, ItemFeatures, ItemHistory

BY_TIME: dict[str, Feature] = {
    **{f"popularity of {days} days": partial(ItemHistory.counts, days=days) for days in DAYS},
    "newest first": lambda history, times: -history.age(times),  # items without interactions come first
}
"""Name of a ranker → its feature."""


@dataclass(eq=False)
class ItemFeatureRanker:
    """Score of a candidate = one feature of `BY_TIME` at the time of the example."""

    name: str
    features: ItemFeatures

    @classmethod
    def fit(cls, name: str, log: pl.DataFrame, catalogue: Catalogue) -> Self:
        """Compute the feature from a log `user_id, item_id, timestamp`."""
        index = {item: i for i, item in enumerate(catalogue.ids)}
        return cls(name, ItemFeatures(ItemHistory.of(log, catalogue), index, {name: BY_TIME[name]}))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        values = self.features(examples)[..., 0].astype(np.float64)
        return np.where(np.isnan(values), -np.inf, values)
