"""Weights of kinds of interactions in what counts: against sums over users, and equal to counts if all are 1."""

from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.data.types import COUNTED, WEIGHT
from prefrec.rankers import PopularityRanker, baseline_rankers
from prefrec.rankers.baselines import CooccurrenceRanker, ItemKNNRanker
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.item_features import DAY, ItemHistory
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.rankers.window import WindowCooccurrenceRanker

ITEMS = [f"i{n}" for n in range(8)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"Thing {n % 3}" for n in range(8)]}))
WEIGHTS = (0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """A log in order of user and time, in which users come back to items with other kinds of interactions."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", ITEMS[rng.integers(8)], COUNTED + t * DAY) for u in range(20) for t in range(9)]
    return make_log(rows).with_columns(pl.Series(WEIGHT, rng.choice(WEIGHTS, len(rows))))


@pytest.fixture(scope="module")
def dense(log) -> np.ndarray:
    """The largest weight of each user and item [U, I]."""
    matrix = np.zeros((20, 8))
    for user, item, _, weight in log.iter_rows():
        at = int(user[1:]), int(item[1:])
        matrix[at] = max(matrix[at], weight)
    return matrix


def _examples() -> list[RankingExample]:
    rng = np.random.default_rng(1)
    orders = [rng.permutation(ITEMS).tolist() for _ in range(12)]
    return [
        RankingExample(f"t{n}", tuple(o[:3]), tuple(o[3:]), o[3], COUNTED + n * DAY) for n, o in enumerate(orders)
    ]


def _pairs(example):
    """Codes of the history and of the candidates."""
    return [[int(item[1:]) for item in items] for items in (example.history, example.candidates)]


def test_weights_of_one_change_nothing(log):
    plain = baseline_rankers(log.drop(WEIGHT), CATALOGUE, seed=3)
    ones = baseline_rankers(log.with_columns(pl.lit(1.0).alias(WEIGHT)), CATALOGUE, seed=3)
    weighted = baseline_rankers(log, CATALOGUE, seed=3)
    changed = set()
    for a, b, c in zip(plain, ones, weighted, strict=True):
        np.testing.assert_allclose(a.score(_examples()), b.score(_examples()), rtol=1e-6, err_msg=a.name)
        if not np.allclose(a.score(_examples()), c.score(_examples())):
            changed.add(a.name)
    counting = {"popularity", "co-occurrence", "item-kNN", "EASE", "window co-occurrence", "transition graph"}
    assert counting | {f"popularity of {days} days" for days in (30, 90, 365)} == changed


def test_counts_are_sums_of_weights(log, dense):
    popularity, pairs = dense.sum(axis=0), dense.T @ dense
    norms = np.sqrt((dense**2).sum(axis=0))
    similarity = pairs / (np.outer(norms, norms) + 10)
    np.fill_diagonal(similarity, 0)
    inverse = np.linalg.inv(pairs + 50 * np.eye(8))
    linear = -inverse / np.diag(inverse)
    np.fill_diagonal(linear, 0)
    examples = _examples()
    found = [
        PopularityRanker.fit(log),
        CooccurrenceRanker.fit(log),
        ItemKNNRanker.fit(log),
        EASERanker.fit(log, 50.0),
    ]
    popular, last, knn, ease = (ranker.score(examples) for ranker in found)
    for n, example in enumerate(examples):
        history, candidates = _pairs(example)
        np.testing.assert_allclose(popular[n], popularity[candidates])
        np.testing.assert_allclose(last[n], pairs[history[-1], candidates])
        np.testing.assert_allclose(knn[n], similarity[history][:, candidates].sum(axis=0))
        np.testing.assert_allclose(ease[n], linear[history][:, candidates].sum(axis=0), atol=1e-5)


def test_neighbours_and_transitions_count_with_both_weights(log, dense):
    near, following = np.zeros((8, 8)), defaultdict(float)
    for user in log["user_id"].unique():
        own = log.filter(pl.col("user_id") == user).to_dicts()
        for a, first in enumerate(own):
            for b in range(a + 1, len(own)):
                both = first[WEIGHT] * own[b][WEIGHT]
                near[int(first["item_id"][1:]), int(own[b]["item_id"][1:])] += np.exp(-(b - a - 1) / 20) * both
                if b == a + 1:
                    following[first["item_id"], own[b]["item_id"]] += both
    popularity = dense.sum(axis=0)
    similarity = (near + near.T) / np.sqrt(np.outer(popularity, popularity))
    examples = _examples()
    scores = WindowCooccurrenceRanker.fit(log).score(examples)
    for n, example in enumerate(examples):
        history, candidates = _pairs(example)
        ages = 2.0 ** (-np.arange(len(history))[::-1] / 2)
        np.testing.assert_allclose(scores[n], ages @ similarity[history][:, candidates])
    graph = TransitionGraphRanker.fit(log, CATALOGUE).following.toarray()
    for (before, after), count in following.items():
        np.testing.assert_allclose(graph[int(before[1:]), int(after[1:])], count)


def test_recent_popularity_is_a_sum_of_weights_that_leaves_no_rest(log):
    history = ItemHistory.of(log, CATALOGUE)
    times = COUNTED + np.array([3, 40, 7, 5000]) * DAY
    found = history.narrowed(np.array([2, 5])).counts(times, 4)
    for row, time in enumerate(times):
        for column, item in enumerate(("i2", "i5")):
            recent = log.filter(
                (pl.col("item_id") == item) & pl.col("timestamp").is_between(time - 4 * DAY, time, closed="left")
            )
            assert found[row, column] == pytest.approx(recent[WEIGHT].sum(), abs=1e-6)
    assert (found[[1, 3]] == 0).all()
