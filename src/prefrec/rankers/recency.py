"""Baselines that use only the time of an example, not the user: recent popularity, and newest items first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.item_features import Feature, ItemFeatures, ItemHistory


@dataclass(eq=False)
class ItemFeatureRanker:
    """Score of a candidate = one feature of the item at the time of the example."""

    name: str
    features: ItemFeatures

    @classmethod
    def fit(cls, name: str, log: pl.DataFrame, catalogue: Catalogue, feature: Feature) -> Self:
        """Compute the feature from a log `user_id, item_id, timestamp`."""
        index = {item: i for i, item in enumerate(catalogue.ids)}
        return cls(name, ItemFeatures(ItemHistory.of(log, catalogue), index, {name: feature}))

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        values = self.features(examples)[..., 0].astype(np.float64)
        return np.where(np.isnan(values), -np.inf, values)


def recent_popularity(log: pl.DataFrame, catalogue: Catalogue, days: int) -> ItemFeatureRanker:
    """Return a ranker by the number of interactions in the last `days` before the example."""
    return ItemFeatureRanker.fit(f"popularity of {days} days", log, catalogue, lambda h, t: h.counts(t, days))


def newest_first(log: pl.DataFrame, catalogue: Catalogue) -> ItemFeatureRanker:
    """Return a ranker by the time of an item's first interaction; items without interactions come first."""
    return ItemFeatureRanker.fit("newest first", log, catalogue, lambda h, t: -h.age(t))
