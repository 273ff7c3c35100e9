"""AUC and NDCG within users: against slow twins, with ties; weights, intervals, JSON, tables."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation import mean_interval, paired_difference, preferences
from prefrec.evaluation.intervals import half_length, jackknife
from prefrec.evaluation.preferences import best_weight, liked_ndcg, spread, within_item_auc, within_user_auc


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, and empty places with any score."""
    width, rows = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    kinds = []
    for _ in range(rows):
        kind = draw(st.lists(st.sampled_from([1, -1, 0]), min_size=width - 2, max_size=width - 2))
        kinds.append(draw(st.permutations([1, -1, *kind])))
    scores = draw(st.lists(st.integers(-2, 2), min_size=rows * width, max_size=rows * width))
    signs = np.array(kinds)
    return np.array(scores, dtype=float).reshape(rows, width), signs > 0, signs < 0


def slow_auc(scores: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> float:
    pairs = list(itertools.product(scores[liked], scores[disliked]))
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def slow_ndcg(scores: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> float:
    """The mean over all orders that the scores allow."""
    every = itertools.permutations(np.flatnonzero(liked | disliked))
    orders = [o for o in every if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))]
    gains = [sum(1 / math.log2(rank + 2) for rank, place in enumerate(o) if liked[place]) for o in orders]
    return float(np.mean(gains)) / sum(1 / math.log2(rank + 2) for rank in range(int(liked.sum())))


@given(questions())
def test_metrics_are_those_of_the_obvious_way(drawn):
    scores, liked, disliked = drawn
    for metric, slow in ((within_user_auc, slow_auc), (liked_ndcg, slow_ndcg)):
        expected = [slow(*row) for row in zip(scores, liked, disliked, strict=True)]
        assert metric(scores, liked, disliked) == pytest.approx(expected)


@given(questions(), st.integers(0, 5))
def test_empty_places_are_not_read(drawn, seed):
    scores, liked, disliked = drawn
    other = np.where(liked | disliked, scores, np.random.default_rng(seed).normal(size=scores.shape) * 9)
    for metric in (within_user_auc, liked_ndcg):
        assert (metric(other, liked, disliked) == metric(scores, liked, disliked)).all()
    assert spread(other, liked | disliked) == spread(scores, liked | disliked)


KINDS = np.array([[1, 1, -1, 0], [1, -1, -1, -1], [-1, 1, 0, 0]])
LIKED, DISLIKED = KINDS > 0, KINDS < 0


def test_the_weight_is_that_of_a_logistic_regression():
    """Pairs drawn from the model itself: the weight is found again, whatever the units of the scores."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4000, 2))
    liked_first = rng.random(4000) < 1 / (1 + np.exp(-(np.diff(first) + 2 * np.diff(second))[:, 0]))
    liked = np.stack([~liked_first, liked_first], axis=1)
    assert best_weight(first, second, liked, ~liked) == pytest.approx(2, rel=0.15)
    assert best_weight(first, second / 100, liked, ~liked) == pytest.approx(200, rel=0.15)


def test_a_score_that_says_nothing_or_the_contrary_is_left_out():
    worst, best = -KINDS.astype(float), KINDS.astype(float)
    assert best_weight(worst, best, LIKED, DISLIKED) == math.inf
    assert best_weight(best, worst, LIKED, DISLIKED) == 0.0
    assert (preferences.mixture(worst, best, math.inf) == best).all()
    assert (preferences.mixture(worst, best, 3.0) == 2 * best).all()


def test_spread_is_that_within_rows():
    scores = np.array([[0.0, 2.0, 1e9], [10.0, 12.0, 14.0]])
    there = np.array([[True, True, False], [True, True, True]])
    assert spread(scores, there) == pytest.approx(math.sqrt((1 + 1 + 4 + 0 + 4) / 5))
    assert spread(np.ones((2, 3)), there) == 1.0


def named(draw_from: int, rows: int, width: int) -> list[list[str]]:
    """Items of rows, with many that rows share."""
    rng = np.random.default_rng(draw_from)
    return [[f"i{i}" for i in rng.permutation(width + 1)[:width]] for _ in range(rows)]


def slow_item_auc(scores: np.ndarray, liked: np.ndarray, disliked: np.ndarray, items: list[list[str]]) -> list[float]:
    """One number per pair of users and item that one of them liked and the other disliked."""
    cells = [(row, column) for row in range(len(items)) for column in range(scores.shape[1])]
    return [
        1.0 if scores[a] > scores[b] else 0.5 if scores[a] == scores[b] else 0.0
        for a, b in itertools.product(cells, cells)
        if liked[a] and disliked[b] and items[a[0]][a[1]] == items[b[0]][b[1]]
    ]


@given(questions(), st.integers(0, 99))
def test_auc_over_users_is_that_of_the_obvious_way(drawn, seed):
    scores, liked, disliked = drawn
    items = named(seed, *scores.shape)
    told, pairs = within_item_auc(scores, liked, disliked, items), slow_item_auc(*drawn, items)
    assert told.n == len(pairs)
    assert told.mean == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)


def test_a_score_that_knows_no_user_has_half_over_users():
    """It has a high AUC within users all the same; so has one that knows users and nothing of the items."""
    rng, items = np.random.default_rng(0), named(0, 60, 6)
    worth = {f"i{i}": float(i) for i in range(7)}
    blind, taste = np.array([[worth[i] for i in row] for row in items]), rng.normal(size=(60, 7))
    own = np.array([[t[int(i[1:])] for i in row] for row, t in zip(items, taste, strict=True)])
    liked = blind + own > np.median(blind + own, axis=1, keepdims=True)
    assert within_user_auc(blind, liked, ~liked).mean() > 0.75
    told = within_item_auc(blind, liked, ~liked, items)
    assert (told.mean, told.low, told.high) == (0.5, 0.5, 0.5)
    assert within_item_auc(own, liked, ~liked, items).low > 0.5


def test_the_interval_over_users_is_that_of_users_left_out():
    rng = np.random.default_rng(1)
    scores, items = rng.normal(size=(24, 5)), named(1, 24, 5)
    liked = rng.random((24, 5)) < 0.5
    told, left = within_item_auc(scores, liked, ~liked, items), []
    for user in range(24):
        kept = np.delete(np.arange(24), user)
        left.append(np.mean(slow_item_auc(scores[kept], liked[kept], ~liked[kept], [items[u] for u in kept])))
    half = half_length(*jackknife(np.array(left) - told.mean))
    assert (told.low, told.high) == pytest.approx((told.mean - half, told.mean + half))
    scores = np.array([[1.0], [0.0]])
    pair = within_item_auc(scores, scores > 0.5, scores < 0.5, [["a"]] * 2)
    assert (pair.mean, pair.n, math.isnan(pair.low)) == (1, 1, True)


@given(questions(), st.integers(0, 99))
def test_what_items_have_for_all_and_users_for_all_is_not_personal(drawn, seed):
    own, liked, disliked = drawn
    rng, present = np.random.default_rng(seed), liked | disliked
    of_items, of_users = rng.integers(-9, 9, size=own.shape), rng.integers(-9, 9, size=(len(own), 1))
    others = np.stack([of_items + own * k for k in (1, 3, -4)])  # a mean of `of_items`
    told = preferences.personal_part(of_items + of_users + own, others, present)
    for row in range(len(own)):
        there = own[row][present[row]]
        assert told[row][present[row]] == pytest.approx(there - there.mean())
        assert (told[row][~present[row]] == 0).all()


def found() -> tuple[preferences.Preferences, dict[str, np.ndarray], np.ndarray, np.ndarray, list[str]]:
    rng, liked = np.random.default_rng(0), np.zeros((40, 6), bool)
    liked[:, :3] = True
    scores = {name: rng.normal(size=(40, 6)) + gain * liked for name, gain in (("sft", 0.0), ("reward", 1.0))}
    users = [f"u{n}" for n in range(40)]
    pairs, weights = [("reward", "sft")], {"reward": math.inf}
    told = preferences.evaluate_preferences(scores, liked, ~liked, users, pairs, weights, 12)
    return told, scores, liked, ~liked, users


def test_intervals_are_those_over_users():
    told, scores, liked, disliked, users = found()
    values = {name: within_user_auc(s, liked, disliked) for name, s in scores.items()}
    interval, alone = told.metrics["reward"]["auc"], mean_interval(values["reward"], users)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((alone.mean, alone.low, alone.high))
    (difference,) = (d for d in told.differences if d.metric == "auc")
    twin = paired_difference(values["reward"], values["sft"], users)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((twin.mean, twin.low, twin.high))
    assert difference.low > 0
    assert told.users == 40


def test_json_and_back():
    told, *_ = found()
    assert told.to_json()["weights"] == {"reward": "inf"}
    assert preferences.Preferences.from_json(told.to_json()) == told
    assert told.weight_sentence() == "Weights, chosen on 12 validation users: reward: ∞"


def test_several_scores_of_an_item_give_the_mean_of_their_metrics():
    _, scores, liked, disliked, users = found()
    both = np.stack(list(scores.values()))
    told = preferences.evaluate_preferences({"both": both} | scores, liked, disliked, users).metrics
    for metric in ("auc", "ndcg"):
        assert told["both"][metric].mean == pytest.approx(np.mean([told[name][metric].mean for name in scores]))
