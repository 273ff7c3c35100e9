"""AUC and NDCG within users: against slow twins, with ties; weights, intervals, JSON, tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.evaluation import mean_interval, paired_difference
from prefrec.evaluation.preferences import (
    Preferences,
    best_weight,
    evaluate_preferences,
    liked_ndcg,
    mixture,
    spread,
    within_user_auc,
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, and empty places with any score."""
    width, rows = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    kinds = []
    for _ in range(rows):
        kind = draw(st.lists(st.sampled_from([1, -1, 0]), min_size=width - 2, max_size=width - 2))
        kinds.append(draw(st.permutations([1, -1, *kind])))
    scores = draw(
        st.lists(st.lists(st.integers(-2, 2), min_size=width, max_size=width), min_size=rows, max_size=rows)
    )
    signs = np.array(kinds)
    return np.array(scores, dtype=float), signs > 0, signs < 0


def slow_auc(scores: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> float:
    pairs = list(itertools.product(scores[liked], scores[disliked]))
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def slow_ndcg(scores: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> float:
    """The mean over all orders that the scores allow."""
    places = np.flatnonzero(liked | disliked)
    orders = [
        o for o in itertools.permutations(places) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
    ]
    gains = [sum(1 / math.log2(rank + 2) for rank, place in enumerate(o) if liked[place]) for o in orders]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(int(liked.sum())))
    return float(np.mean(gains)) / ideal


@settings(max_examples=80, deadline=None)
@given(questions())
def test_metrics_are_those_of_the_obvious_way(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, liked, disliked = drawn
    for metric, slow in ((within_user_auc, slow_auc), (liked_ndcg, slow_ndcg)):
        expected = [slow(*row) for row in zip(scores, liked, disliked, strict=True)]
        assert metric(scores, liked, disliked) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(questions(), st.integers(0, 5))
def test_empty_places_are_not_read(drawn: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    scores, liked, disliked = drawn
    other = np.where(liked | disliked, scores, np.random.default_rng(seed).normal(size=scores.shape) * 9)
    for metric in (within_user_auc, liked_ndcg):
        assert (metric(other, liked, disliked) == metric(scores, liked, disliked)).all()
    assert spread(other, liked | disliked) == spread(scores, liked | disliked)


KINDS = np.array([[1, 1, -1, 0], [1, -1, -1, -1], [-1, 1, 0, 0]])
LIKED, DISLIKED = KINDS > 0, KINDS < 0


def test_the_weight_is_that_of_a_logistic_regression() -> None:
    """Pairs drawn from the model itself: the weight is found again, whatever the units of the scores."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4000, 2))
    liked_first = rng.random(4000) < 1 / (1 + np.exp(-(np.diff(first) + 2 * np.diff(second))[:, 0]))
    liked = np.stack([~liked_first, liked_first], axis=1)
    assert best_weight(first, second, liked, ~liked) == pytest.approx(2, rel=0.15)
    assert best_weight(first, second / 100, liked, ~liked) == pytest.approx(200, rel=0.15)


def test_a_score_that_says_nothing_or_the_contrary_is_left_out() -> None:
    worst, best = -KINDS.astype(float), KINDS.astype(float)
    assert best_weight(worst, best, LIKED, DISLIKED) == math.inf
    assert best_weight(best, worst, LIKED, DISLIKED) == 0.0
    assert (mixture(worst, best, math.inf) == best).all()
    assert (mixture(worst, best, 3.0) == 2 * best).all()


def test_spread_is_that_within_rows() -> None:
    scores = np.array([[0.0, 2.0, 1e9], [10.0, 12.0, 14.0]])
    there = np.array([[True, True, False], [True, True, True]])
    assert spread(scores, there) == pytest.approx(math.sqrt((1 + 1 + 4 + 0 + 4) / 5))
    assert spread(np.ones((2, 3)), there) == 1.0


def found(resamples: int = 300) -> tuple[Preferences, dict[str, np.ndarray], np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    liked = np.zeros((40, 6), bool)
    liked[:, :3] = True
    scores = {name: rng.normal(size=(40, 6)) + gain * liked for name, gain in (("sft", 0.0), ("reward", 1.0))}
    users = [f"u{n}" for n in range(40)]
    told = evaluate_preferences(
        scores, liked, ~liked, users, [("reward", "sft")], {"reward": math.inf}, 12, seed=3, resamples=resamples
    )
    return told, scores, liked, ~liked, users


def test_intervals_are_those_of_the_bootstrap_over_users() -> None:
    told, scores, liked, disliked, users = found()
    values = {name: within_user_auc(s, liked, disliked) for name, s in scores.items()}
    interval, alone = told.metrics["reward"]["auc"], mean_interval(values["reward"], users, 300, 3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((alone.mean, alone.low, alone.high))
    (difference,) = (d for d in told.differences if d.metric == "auc")
    twin = paired_difference(values["reward"], values["sft"], users, 300, 3)
    assert difference.mean == pytest.approx(twin.mean)
    assert (difference.low, difference.high) == pytest.approx((twin.low, twin.high))
    assert difference.low > 0
    assert told.users == 40


def test_json_and_back() -> None:
    told, *_ = found()
    assert told.to_json()["weights"] == {"reward": "inf"}
    assert Preferences.from_json(told.to_json()) == told
    assert told.weight_sentence() == "Weights, chosen on 12 validation users: reward: ∞"
