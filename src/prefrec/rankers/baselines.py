"""Baselines: rankers without a neural model.

They learn from training interactions, a frame `user_id, item_id, timestamp[, weight]`; items without interactions
score 0. Weights of kinds of interactions, such as 0.1 for views, multiply counts; in the formulas below they are 1.
Title TF-IDF learns from titles instead. Window co-occurrence is in `window`, EASE in `ease`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.console import say
from prefrec.data import Catalogue, Query, RankingExample, has_dates
from prefrec.data.types import WEIGHT
from prefrec.rankers.base import Ranker
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.ease import EASERanker, too_large
from prefrec.rankers.item_features import DAYS, Feature, ItemFeatures, ItemHistory
from prefrec.rankers.item_only import ItemOnlyRanker
from prefrec.rankers.matrices import (
    blocks,
    history_matrix,
    history_terms,
    item_scores,
    pad_scores,
    quick_factor,
    score_by_rows,
    user_item_matrix,
    weighted_pairs,
)
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.rankers.words import tfidf


@dataclass(eq=False)
class RandomRanker:
    """A uniform score in [0, 1) from a hash of (seed, user, history, candidate)."""

    seed: int = 0
    name: str = "random"

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        return pad_scores([self._row(q) for q in queries])

    def _row(self, query: Query) -> list[float]:
        user = "-" if query.user_id is None else query.user_id
        key = "\x1f".join((str(self.seed), user, *query.history, ""))
        prefix = blake2b(key.encode(), digest_size=8)
        scores = []
        for candidate in query.candidates:
            digest = prefix.copy()
            digest.update(candidate.encode())
            # The upper 53 bits: the precision of a float.
            scores.append((int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53)
        return scores


@dataclass(eq=False)
class PopularityRanker:
    """Score of a candidate = number of training users who interacted with it, each with its largest weight."""

    counts: dict[str, float]
    name: str = "popularity"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Count the distinct users of each item.

        Args:
            train_interactions: frame with `user_id`, `item_id` and perhaps `weight`.
        """
        counts = weighted_pairs(train_interactions).group_by("item_id", maintain_order=True).agg(pl.col(WEIGHT).sum())
        return cls(dict(counts.iter_rows()))

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        return item_scores(queries, self.counts)


BY_TIME: dict[str, Feature] = {
    **{f"popularity of {days} days": partial(ItemHistory.counts, days=days) for days in DAYS},
    "newest first": lambda history, times: -history.age(times),  # items without interactions come first
}
"""Name of a ranker that uses only the time of an example → its feature."""


@dataclass(eq=False)
class ItemFeatureRanker:
    """Score of a candidate = one feature of `BY_TIME` at the time of the example."""

    name: str
    features: ItemFeatures

    @classmethod
    def fit(cls, name: str, log: pl.DataFrame, catalogue: Catalogue) -> Self:
        """Compute the feature from a log `user_id, item_id, timestamp`."""
        return cls(name, ItemFeatures(ItemHistory.of(log, catalogue), catalogue.index, {name: BY_TIME[name]}))

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        values = self.features(queries)[..., 0].astype(np.float64)
        scores = np.where(np.isnan(values), -np.inf, values)
        return scores if len(scores) == len(queries) else np.repeat(scores, len(queries), axis=0)


@dataclass(eq=False)
class CooccurrenceRanker:
    """Score of a candidate = number of training users who interacted with it and with the last item of the history.

    count(l, c) = (XᵀX)[l, c] with X the user × item matrix (`user_item_matrix`). Without a history all scores are 0.
    A training user's log contains the targets of that user's examples, so only held-out examples give fair metrics.
    """

    matrix: sparse.csr_array
    index: dict[str, int]
    name: str = "co-occurrence"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame) -> Self:
        """Keep the user × item matrix, from which `score` computes counts."""
        return cls(*user_item_matrix(train_interactions))

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        lasts = history_matrix([q.history[-1:] for q in queries], self.index)
        users = self.matrix.T.tocsr()
        return score_by_rows(lasts, lambda block: block @ users @ self.matrix, queries, self.index)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        def to_item(column: int) -> NDArray[np.float64]:
            return (self.matrix.T.tocsr() @ self.matrix[:, [column]]).toarray()[:, 0]

        last = history_terms(history[-1:], item, self.index, to_item)
        return np.concatenate([np.zeros(max(0, len(history) - 1)), last])


@dataclass(eq=False)
class ItemKNNRanker:
    """Score of candidate c = Σ of s(c, i) over the history items i that are among the k nearest neighbours of c.

    s(c, i) = |U_c ∩ U_i| / (√(|U_c|·|U_i|) + shrink), the shrunk cosine of two columns of the binary user × item
    matrix (Sarwar et al. 2001; Deshpande and Karypis 2004).
    """

    similarity: sparse.csr_array
    index: dict[str, int]
    name: str = "item-kNN"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame, k: int = 200, shrink: float = 10.0) -> Self:
        """Keep the most similar items of each item.

        Args:
            train_interactions: frame with `user_id` and `item_id`.
            k: neighbours per item.
            shrink: pulls the similarities of rare items to 0.
        """
        matrix, index = user_item_matrix(train_interactions)
        items = matrix.T.tocsr()
        norms = np.sqrt(items.power(2).sum(axis=1))
        parts = [sparse.csr_array((0, len(index)))]
        for rows in blocks(len(index), len(index)):
            similarity = sparse.csr_array(items[rows] @ matrix)
            item = np.repeat(np.arange(rows.start, rows.stop), np.diff(similarity.indptr))
            similarity.data /= norms[item] * norms[similarity.indices] + shrink
            similarity.data[item == similarity.indices] = 0.0  # an item is not its own neighbour
            for start, end in pairwise(similarity.indptr):
                own = similarity.data[start:end]  # a view
                if len(own) > k:
                    own[own < np.partition(own, -k)[-k]] = 0.0
            similarity.eliminate_zeros()
            parts.append(similarity)
        return cls(sparse.csr_array(sparse.vstack(parts, format="csr")), index)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        histories = history_matrix([q.history for q in queries], self.index)
        return score_by_rows(histories, lambda block: block @ self._factor, queries, self.index)

    @cached_property
    def _factor(self) -> Any:
        return quick_factor(self.similarity.T.tocsr())

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        return history_terms(history, item, self.index, lambda column: self.similarity[[column]].toarray()[0])


@dataclass(eq=False)
class TitleTfidfRanker:
    """Score of candidate c = Σ over history items i of 2^(−age_i / half_life) · cos(title of i, title of c).

    Titles are TF-IDF vectors (`tfidf`); the newest item of the history has age 0. New items score like others.
    """

    vectors: sparse.csr_array
    index: dict[str, int]
    half_life: float = 1.0
    name: str = "title TF-IDF"

    @classmethod
    def fit(cls, catalogue: Catalogue, *, half_life: float = 1.0) -> Self:
        """Keep a sparse vector per item.

        Args:
            catalogue: items and their titles.
            half_life: number of history items after which the weight is halved.
        """
        vectors = tfidf(list(catalogue.titles.values()))
        return cls(vectors, {item: i for i, item in enumerate(catalogue.titles)}, half_life)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        weights = history_matrix([q.history for q in queries], self.index, self.half_life)
        return score_by_rows(weights, lambda block: block @ self.vectors @ self._titles, queries, self.index)

    @cached_property
    def _titles(self) -> sparse.csr_array:
        return self.vectors.T.tocsr()

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        def to_item(column: int) -> NDArray[np.float64]:
            return (self.vectors @ self.vectors[[column]].T).toarray()[:, 0]

        return history_terms(history, item, self.index, to_item, self.half_life)


Fit = Callable[[pl.DataFrame, Catalogue, int, Mapping[str, Any]], Ranker]
"""Log, catalogue, seed, and the settings or `validation`, the examples that choose them → ranker."""


def _fit_feature(name: str) -> Fit:
    return lambda log, items, seed, by: ItemFeatureRanker.fit(name, log, items)


TIMED = {name: _fit_feature(name) for name in BY_TIME}
"""Baselines that need dates."""
_BASELINES: dict[str, Fit] = {
    RandomRanker.name: lambda log, items, seed, by: RandomRanker(seed),
    PopularityRanker.name: lambda log, items, seed, by: PopularityRanker.fit(log),
    **TIMED,
    BuyAgainRanker.name: lambda log, items, seed, by: BuyAgainRanker.fit(by["validation"]),
    CooccurrenceRanker.name: lambda log, items, seed, by: CooccurrenceRanker.fit(log),
    ItemKNNRanker.name: lambda log, items, seed, by: ItemKNNRanker.fit(log),
    EASERanker.name: lambda log, items, seed, by: EASERanker.fit(log, **by),
    WindowCooccurrenceRanker.name: lambda log, items, seed, by: WindowCooccurrenceRanker.fit(log, **by),
    TitleTfidfRanker.name: lambda log, items, seed, by: TitleTfidfRanker.fit(items),
    TransitionGraphRanker.name: lambda log, items, seed, by: TransitionGraphRanker.fit(log, items),
    ItemOnlyRanker.name: lambda log, items, seed, by: ItemOnlyRanker.fit(log, items, seed),
}
"""Name → function that fits the ranker, in the order of tables."""
BASELINES: tuple[str, ...] = tuple(_BASELINES)
"""Names of the baselines, in the order of tables."""


NO_DATES = "needs dates, but the times of the log are counters"
NO_REPEATS = "needs interactions that repeat an earlier one, which data.repeats: keep keeps"
FIRST_ROWS = 1_000_000
"""Interactions among which a repeat is searched."""
CHOOSING = (WindowCooccurrenceRanker, EASERanker)
"""Baselines whose settings are chosen on a log."""
LIMITED = {*TIMED, BuyAgainRanker.name, EASERanker.name}
"""Baselines that cannot be fitted to every log."""


def unable(log: pl.DataFrame, names: Collection[str] = BASELINES) -> dict[str, str]:
    """Return name → reason of those of these baselines that cannot be fitted to a log."""
    reasons = {} if has_dates(log) else {name: NO_DATES for name in TIMED if name in names}
    if BuyAgainRanker.name in names:
        pairs = log.head(FIRST_ROWS).select("user_id", "item_id")
        if pairs.n_unique() == len(pairs):
            reasons[BuyAgainRanker.name] = NO_REPEATS
    if EASERanker.name in names and (reason := too_large(log["item_id"].n_unique())):
        reasons[EASERanker.name] = reason
    return reasons


def servable(log: pl.DataFrame) -> list[str]:
    """Return the names of the baselines that can answer single requests, given the log to fit them to."""
    without = unable(log)
    return [name for name in BASELINES if name != ItemOnlyRanker.name and name not in without]


def baseline_rankers(
    train_interactions: pl.DataFrame,
    catalogue: Catalogue,
    seed: int = 0,
    names: Collection[str] = BASELINES,
    validation: Sequence[RankingExample] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Ranker]:
    """Return fitted baselines, in the order of tables.

    Args:
        train_interactions: frame `user_id, item_id, timestamp`. Without dates, baselines that need dates are skipped,
            and without repeats *buy again* is; EASE is, with a note, if its matrix is too large.
        catalogue: all items.
        seed: of `random`, and of the folds of `item only`.
        names: names of the baselines. Default: all.
        validation: examples that choose the settings of *window co-occurrence*, of *buy again* and of EASE. The log
            must not contain their targets. Default: their default settings.
        settings: name → `settings` of *window co-occurrence* and EASE that are already chosen.
    """
    without = unable(train_interactions, names)
    if EASERanker.name in without:
        say(f"{EASERanker.name} is left out: it {without[EASERanker.name]}")
    settings = settings or {}
    rankers: list[Ranker] = []
    for name, fit in _BASELINES.items():
        if name in names and name not in without:
            by = settings.get(name, {"validation": validation})
            rankers.append(fit(train_interactions, catalogue, seed, by))
    return rankers
