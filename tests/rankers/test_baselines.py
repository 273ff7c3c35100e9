"""Reference rankers against slow twins that loop over users."""

import itertools
import math

import numpy as np
import polars as pl
import pytest

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import target_ranks
from prefrec.pipeline.recipe import BASELINES
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import (
    CooccurrenceRanker,
    ItemKNNRanker,
    PopularityRanker,
    RandomRanker,
    baseline_rankers,
)


def _logs(n_users: int = 30, n_items: int = 15, seed: int = 0) -> dict[str, list[str]]:
    rng = np.random.default_rng(seed)
    return {f"u{u}": [f"i{i}" for i in rng.permutation(n_items)[: rng.integers(2, n_items)]] for u in range(n_users)}


def _frame(logs: dict[str, list[str]]) -> pl.DataFrame:
    rows = [(u, i, t) for u, items in logs.items() for t, i in enumerate(items)]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _examples(n: int = 20, n_items: int = 15, seed: int = 1) -> list[RankingExample]:
    rng = np.random.default_rng(seed)
    items = [f"i{i}" for i in range(n_items)] + ["unseen"]
    rows = []
    for b in range(n):
        order = [items[i] for i in rng.permutation(len(items))]
        size = int(rng.integers(2, 7))
        rows.append(RankingExample(f"t{b}", tuple(order[size : size + 3]), tuple(order[:size]), order[0]))
    return rows


CATALOGUE = Catalogue(
    pl.DataFrame(
        {
            "item_id": [*(f"i{i}" for i in range(15)), "unseen"],
            "title": [*(f"Part {i % 4} of {i % 3}" for i in range(15)), "Unseen"],
        }
    )
)


@pytest.fixture(scope="module")
def logs() -> dict[str, list[str]]:
    return _logs()


def test_every_reference_ranker_meets_the_protocol(logs):
    examples = _examples()
    rankers = baseline_rankers(_frame(logs), CATALOGUE, seed=3)
    timed = {"popularity of 30 days", "popularity of 90 days", "popularity of 365 days", "newest first"}
    assert [r.name for r in rankers] == [name for name in BASELINES if name not in timed]
    for ranker in rankers:
        scores = ranker.score(examples)
        assert isinstance(ranker, Ranker)
        assert scores.dtype == np.float64
        assert scores.shape == (len(examples), max(len(e.candidates) for e in examples))
        for row, example in zip(scores, examples, strict=True):
            assert np.isfinite(row[: len(example.candidates)]).all()
            assert np.isneginf(row[len(example.candidates) :]).all()
        assert ranker.score([]).shape == (0, 0)
        if ranker.name != "item only":  # it learns from all rows that it scores
            np.testing.assert_array_equal(ranker.score(examples[5:6])[0, :2], scores[5, :2])


def test_random_scores_belong_to_the_question_and_the_seed():
    example = _examples()[0]
    turned = RankingExample(example.user_id, example.history, example.candidates[::-1], example.target)
    scores = RandomRanker(1).score([example])[0]
    np.testing.assert_array_equal(RandomRanker(1).score([turned])[0][::-1], scores)
    assert not np.array_equal(RandomRanker(2).score([example])[0], scores)
    other = RankingExample("someone else", example.history, example.candidates, example.target)
    assert not np.array_equal(RandomRanker(1).score([other])[0], scores)


def test_random_is_uniform():
    rows = [RankingExample(str(u), (), tuple("abcde"), "a") for u in range(4000)]
    scores = RandomRanker(0).score(rows)
    assert abs((target_ranks(scores, [0] * 4000)[0] == 1).mean() - 0.2) < 0.02
    assert abs(scores.mean() - 0.5) < 0.01


def test_popularity_counts_users(logs):
    examples = _examples()
    twice = pl.concat([_frame(logs), _frame(logs)])
    scores = PopularityRanker.fit(twice).score(examples)
    for b, e in enumerate(examples):
        expected = [sum(c in items for items in logs.values()) for c in e.candidates]
        assert scores[b, : len(expected)].tolist() == expected


def test_cooccurrence_equals_its_slow_twin(logs):
    examples = [*_examples(), RankingExample("new", (), ("i0", "i1"), "i0")]
    scores = CooccurrenceRanker.fit(_frame(logs)).score(examples)
    for b, e in enumerate(examples):
        last = e.history[-1] if e.history else None
        expected = [sum(last in items and c in items for items in logs.values()) for c in e.candidates]
        assert scores[b, : len(expected)].tolist() == expected


@pytest.mark.parametrize(("k", "shrink"), [(100, 0.0), (4, 2.5)])
def test_item_knn_equals_its_slow_twin(logs, k, shrink):
    users = {f"i{i}": {u for u, items in logs.items() if f"i{i}" in items} for i in range(15)}

    def similarity(a: str, b: str) -> float:
        both = len(users[a] & users[b])
        return both / (math.sqrt(len(users[a]) * len(users[b])) + shrink) if a != b else 0.0

    def score(candidate: str, history: tuple[str, ...]) -> float:
        if candidate not in users:
            return 0.0
        near = {i: similarity(candidate, i) for i in users}
        floor = sorted(near.values(), reverse=True)[:k][-1]
        return sum(near[i] for i in history if i in near and near[i] >= floor)

    examples = _examples()
    scores = ItemKNNRanker.fit(_frame(logs), k=k, shrink=shrink).score(examples)
    for b, e in enumerate(examples):
        expected = [score(c, e.history) for c in e.candidates]
        np.testing.assert_allclose(scores[b, : len(expected)], expected, atol=1e-12)


def test_blocks_do_not_change_the_scores(logs, monkeypatch):
    whole = [r.score(_examples()) for r in baseline_rankers(_frame(logs), CATALOGUE)]
    monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", 40)
    monkeypatch.setattr("prefrec.rankers.window._PAIRS_AT_A_TIME", 40)
    for before, after in itertools.zip_longest(
        whole, [r.score(_examples()) for r in baseline_rankers(_frame(logs), CATALOGUE)]
    ):
        np.testing.assert_allclose(before, after, atol=1e-12)
