"""Rank lists without the user, by a conditional logit on user-blind features that is learnt on these very lists."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, blind_features
from prefrec.rankers.logit import Logit, fit_logit

FOLDS = 5
"""Parts of the users; a part is scored with the weights of the others."""
MOST_ROWS = 4000
"""Rows that weights are learnt from; of more rows, a random sample is taken."""
MOST_CANDIDATES = 500
"""Negatives of a row that weights are learnt from. Weights stay consistent with a sample (McFadden 1978)."""


@dataclass(eq=False)
class ItemOnlyRanker:
    """Score of a candidate = utility by `blind_features`, with weights learnt on the rows under test.

    Weights are cross-fitted by user: the rows of a fold are scored with weights from the other folds. So no ranker
    can use the lists better without knowing the user, and one that is not above this row has shown nothing.
    """

    features: ItemFeatures
    seed: int = 0
    name: str = "item only"
    folds: list[Logit] | None = None

    @classmethod
    def fit(cls, log: pl.DataFrame, catalogue: Catalogue, seed: int = 0) -> Self:
        """Take features from a log `user_id, item_id, timestamp[, rating]`; weights are learnt later (`learn`)."""
        index = {item: i for i, item in enumerate(catalogue.ids)}
        return cls(ItemFeatures(ItemHistory.of(log, catalogue), index, blind_features(catalogue, log)), seed)

    def learn(self, examples: Sequence[RankingExample]) -> Self:
        """Return this ranker with weights from these rows, to score them in blocks."""
        rng = np.random.default_rng([self.seed, 5])
        chosen = np.sort(rng.permutation(len(examples))[:MOST_ROWS])
        rows = [_sampled(examples[i], rng) for i in chosen]
        features, names = self.features(rows), list(self.features.features)
        targets = np.array([e.target_index for e in rows], dtype=np.int64)
        fold = np.array([self._fold(e.user_id) for e in rows])
        # With users of one fold alone there is nobody else to learn from.
        others = [np.flatnonzero(fold != k) for k in range(FOLDS)]
        others = [own if len(own) else np.arange(len(rows)) for own in others]
        return replace(self, folds=[fit_logit(features[own], targets[own], names) for own in others])

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return utilities [B, C]; -inf in empty places. Without `learn` the weights come from these rows."""
        folds = (self if self.folds or not examples else self.learn(examples)).folds or []
        features = self.features(examples)
        fold = np.array([self._fold(e.user_id) for e in examples])
        out = np.full(features.shape[:2], -np.inf)
        for k, logit in enumerate(folds):
            out[fold == k] = logit.utility(features[fold == k])
        return out

    def _fold(self, user: str) -> int:
        return zlib.crc32(f"{self.seed}\x1f{user}".encode()) % FOLDS


def _sampled(example: RankingExample, rng: np.random.Generator) -> RankingExample:
    """Return the example with its target and at most `MOST_CANDIDATES` others."""
    if len(example.candidates) <= MOST_CANDIDATES + 1:
        return example
    drawn = rng.choice(len(example.candidates), MOST_CANDIDATES, replace=False)
    others = [example.candidates[i] for i in drawn if example.candidates[i] != example.target]
    return replace(example, candidates=(example.target, *others))
