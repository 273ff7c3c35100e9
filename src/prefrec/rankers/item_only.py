"""Rank without knowing the user: a conditional logit on item features, learnt on the examples under test."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, Query, RankingExample
from prefrec.data.types import WEIGHT
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, blind_features
from prefrec.rankers.logit import Features, Logit, fit_logit, utility_by_fold
from prefrec.rankers.matrices import pad_codes

FOLDS = 5
"""Number of folds of items. Examples with a target in a fold are scored with weights from the items of the others."""
MOST_ROWS = 4000
"""Most examples to learn weights from; a larger number is sampled."""
MOST_CANDIDATES = 500
"""Most negatives per example to learn weights from. A sample keeps the weights consistent (McFadden 1978)."""


@dataclass(eq=False)
class ItemOnlyRanker:
    """Score of a candidate = utility of its `blind_features`, with weights learnt on the examples under test.

    Weights are cross-fitted by item: an example is scored with weights that were learnt without its target, neither
    as a target nor as a candidate. This approximates the best result without knowing the user. A ranker that does not
    beat it has not shown that it uses the history. Folds of users would not do: a popular item is the target of many
    users, so weights from other users recognise it by any feature, even by pure noise.
    """

    features: ItemFeatures
    seed: int = 0
    name: str = "item only"
    folds: Sequence[Logit] = ()

    @classmethod
    def fit(cls, log: pl.DataFrame, catalogue: Catalogue, seed: int = 0) -> Self:
        """Compute features from a log `user_id, item_id, timestamp[, rating]`. `learn` learns the weights later.

        Weights of kinds of interactions do not count: the question is what can be known of an item at all.
        """
        log = log.drop(WEIGHT, strict=False)
        return cls(
            ItemFeatures(ItemHistory.of(log, catalogue), catalogue.index, blind_features(catalogue, log)), seed
        )

    def learn(self, examples: Sequence[RankingExample]) -> Self:
        """Return this ranker with weights learnt on these examples, which it can then score in blocks."""
        rng = np.random.default_rng([self.seed, 5])
        chosen = np.sort(rng.permutation(len(examples))[:MOST_ROWS])
        rows = [_sampled(examples[i], rng) for i in chosen]
        features = self.features(rows)
        targets = np.array([e.target_index for e in rows], dtype=np.int64)
        fold = self._folds(rows)
        codes = pad_codes([e.candidates for e in rows], self.features.index)
        of_items = np.array([self._fold(item) for item in self.features.index], dtype=np.int64)
        of_candidates = np.where(codes < 0, -1, of_items[codes])
        folds = []
        for k in range(FOLDS):
            others = np.flatnonzero(fold != k)
            without = features[others]
            # As negatives only, the fold's items would teach the weights that such items are no targets.
            without[of_candidates[others] == k] = np.nan
            folds.append(self._fit(without, targets[others]))
        return replace(self, folds=folds)

    def _fit(self, features: Features, targets: NDArray[np.int64]) -> Logit:
        names = tuple(self.features.names)
        if len(targets):
            return fit_logit(features, targets, names)
        # All targets are in one fold, and no other target says what its weights are: all candidates tie.
        zeros, ones = np.zeros(len(names)), np.ones(len(names))
        return Logit(names, mean=zeros, scale=ones, weights=zeros, errors=ones, n=0)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return utilities [B, C]; -inf in empty columns. Without `learn`, weights are learnt on these examples.

        All queries are examples, because the fold of a target decides by which weights it is scored.
        """
        examples = cast(Sequence[RankingExample], queries)  # a measure of candidate sets answers no client
        folds = self.folds or (self.learn(examples).folds if examples else ())
        features = self.features(examples)
        features = np.broadcast_to(features, (len(examples), *features.shape[1:]))
        return utility_by_fold(folds, features, self._folds(examples))

    def _folds(self, examples: Sequence[RankingExample]) -> NDArray[np.int64]:
        return np.array([self._fold(e.target) for e in examples], dtype=np.int64)

    def _fold(self, item: str) -> int:
        return zlib.crc32(f"{self.seed}\x1f{item}".encode()) % FOLDS


def _sampled(example: RankingExample, rng: np.random.Generator) -> RankingExample:
    """Return the example with its target and at most `MOST_CANDIDATES` negatives."""
    if len(example.candidates) <= MOST_CANDIDATES + 1:
        return example
    drawn = rng.choice(len(example.candidates), MOST_CANDIDATES, replace=False)
    others = [example.candidates[i] for i in drawn if example.candidates[i] != example.target]
    return replace(example, candidates=(example.target, *others))
