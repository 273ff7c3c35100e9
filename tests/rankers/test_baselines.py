"""Reference rankers against slow twins that loop over users."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import target_ranks
from prefrec.rankers import PopularityRanker, Ranker, baseline_rankers
from prefrec.rankers.baselines import BASELINES, TIMED, CooccurrenceRanker, ItemKNNRanker, RandomRanker


def _frame(logs: dict[str, list[str]]) -> pl.DataFrame:
    return make_log([(u, i, t) for u, items in logs.items() for t, i in enumerate(items)])


ITEMS = [*(f"i{i}" for i in range(15)), "unseen"]
TITLES = [*(f"Part {i % 4} of {i % 3}" for i in range(15)), "Unseen"]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": TITLES}))


def _drawn() -> Iterator[RankingExample]:
    rng = np.random.default_rng(1)
    for b in range(20):
        order, size = rng.permutation(ITEMS).tolist(), int(rng.integers(2, 7))
        yield RankingExample(f"t{b}", tuple(order[size : size + 3]), tuple(order[:size]), order[0])


EXAMPLES = [*_drawn()]


@pytest.fixture(scope="module")
def logs() -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    return {f"u{u}": rng.permutation(ITEMS[:15])[: rng.integers(2, 15)].tolist() for u in range(30)}


def test_every_baseline_meets_the_protocol(logs):
    rankers = baseline_rankers(_frame(logs), CATALOGUE, seed=3)
    unable = {*TIMED, "buy again"}  # the log has neither dates nor repeats
    assert [r.name for r in rankers] == [name for name in BASELINES if name not in unable]
    for ranker in rankers:
        scores = ranker.score(EXAMPLES)
        assert isinstance(ranker, Ranker)
        assert scores.dtype == np.float64
        assert scores.shape == (len(EXAMPLES), max(len(e.candidates) for e in EXAMPLES))
        for row, example in zip(scores, EXAMPLES, strict=True):
            assert np.isfinite(row[: len(example.candidates)]).all()
            assert np.isneginf(row[len(example.candidates) :]).all()
        assert ranker.score([]).shape == (0, 0)
        if ranker.name != "item only":  # it learns from all rows that it scores
            np.testing.assert_array_equal(ranker.score(EXAMPLES[5:6])[0, :2], scores[5, :2])


def test_random_scores_belong_to_the_question_and_the_seed():
    example = EXAMPLES[0]
    turned, other = replace(example, candidates=example.candidates[::-1]), replace(example, user_id="someone else")
    (scores,) = RandomRanker(1).score([example])
    np.testing.assert_array_equal(RandomRanker(1).score([turned])[0][::-1], scores)
    assert not np.array_equal(RandomRanker(2).score([example])[0], scores)
    assert not np.array_equal(RandomRanker(1).score([other])[0], scores)


def test_random_is_uniform():
    rows = [RankingExample(str(u), (), tuple("abcde"), "a") for u in range(4000)]
    scores = RandomRanker(0).score(rows)
    assert abs((target_ranks(scores, [0] * 4000)[0] == 1).mean() - 0.2) < 0.02
    assert abs(scores.mean() - 0.5) < 0.01


def _assert_scores(ranker: Ranker, examples: list[RankingExample], slow: Callable[..., float]) -> None:
    """Each score is that of the slow twin, which is asked for a candidate and a history."""
    for row, e in zip(ranker.score(examples), examples, strict=True):
        expected = [slow(c, e.history) for c in e.candidates]
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=1e-12)


def test_popularity_counts_users(logs):
    twice = pl.concat([_frame(logs), _frame(logs)])
    _assert_scores(PopularityRanker.fit(twice), EXAMPLES, lambda c, _: sum(c in items for items in logs.values()))


def test_cooccurrence_equals_its_slow_twin(logs):
    examples = [*EXAMPLES, RankingExample("new", (), ("i0", "i1"), "i0")]

    def score(candidate: str, history: tuple[str, ...]) -> float:
        return sum(history[-1] in items and candidate in items for items in logs.values()) if history else 0

    _assert_scores(CooccurrenceRanker.fit(_frame(logs)), examples, score)


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

    _assert_scores(ItemKNNRanker.fit(_frame(logs), k=k, shrink=shrink), EXAMPLES, score)


def test_blocks_do_not_change_the_scores(logs, monkeypatch):
    whole = [r.score(EXAMPLES) for r in baseline_rankers(_frame(logs), CATALOGUE)]
    monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", 40)
    monkeypatch.setattr("prefrec.rankers.window._PAIRS_AT_A_TIME", 40)
    for before, ranker in zip(whole, baseline_rankers(_frame(logs), CATALOGUE), strict=True):
        np.testing.assert_allclose(before, ranker.score(EXAMPLES), atol=1e-12)
