"""The best items of many questions in blocks, against loops over questions and items."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drawn_logs import make_log
from prefrec.data import Candidates, Catalogue, PreparedData, Queries, Query, RankingExample
from prefrec.rankers import matrices
from prefrec.rankers.attributes import attribute_ranker
from prefrec.rankers.base import ListRanker
from prefrec.rankers.baselines import baseline_rankers
from prefrec.rankers.blend import BlendRanker
from prefrec.rankers.blend_learning import learn_weights
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.recommend import best
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import Selection, answer_all
from prefrec.recommend.rules import Rules

ITEMS = [f"i{n}" for n in range(30)]
TITLES = [f"Word{n % 4} Title{n % 7} {n}x" for n in range(30)]
PRICES = [None if n % 9 == 4 else 1.5 * n for n in range(30)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": TITLES, "brand": [*"abc"] * 10, "price": PRICES}))
RNG = np.random.default_rng(3)
LOG = make_log([(f"u{u:02}", ITEMS[i], n) for u in range(60) for n, i in enumerate(RNG.permutation(28)[:9])])
COUNTS = [
    "popularity",
    "co-occurrence",
    "item-kNN",
    "EASE",
    "window co-occurrence",
    "title TF-IDF",
    "transition graph",
]
ATTRIBUTES = {"brand": "same", "price": "near"}
OTHERS = ["same brand", "near price", "blend"]
REPEATS = "buy again"


def slow_top(scores, k):
    """Row, column and score, by sorting each row."""
    found = []
    for row, own in enumerate(scores.tolist()):
        order = sorted((c for c, s in enumerate(own) if s > -np.inf), key=lambda c: (-own[c], c))
        found += [(row, c, own[c]) for c in order[:k]]
    return found


def slow_boosted_top(scores, k, factors):
    """Row, column and score: an item at place n of its row goes to n / factor, before others with a lower factor."""
    found = []
    for row in range(len(scores)):
        places = [
            (n / factors[c], -factors[c], n, c, s) for n, (_, c, s) in enumerate(slow_top(scores[[row]], 99), 1)
        ]
        found += [(row, column, score) for *_, column, score in sorted(places)[:k]]
    return found


few_values = st.sampled_from([-np.inf, -1.5, 0.0, 2.0, 3.0])


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=few_values),
    k=st.integers(1, 10),
)
def test_top_equals_sorting_each_row(scores, k):
    assert [*zip(*(part.tolist() for part in best.top(scores, k)), strict=True)] == slow_top(scores, k)


boosts = st.sampled_from([0.01, 0.5, 1.0, 1.0, 2.0, 3.0])


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 5), st.just(12)), elements=few_values),
    factors=arrays(np.float64, 12, elements=boosts),
    k=st.integers(1, 13),
)
def test_top_after_boosts_equals_moving_each_place(scores, factors, k):
    got = [*zip(*(part.tolist() for part in best.top(scores, k, factors)), strict=True)]
    assert got == slow_boosted_top(scores, k, factors.tolist())


@pytest.mark.parametrize(
    ("factor", "before", "after"), [(2, 10, 5), (5, 10, 2), (3, 10, 4), (100, 12, 1), (0.5, 5, 10), (0.5, 1, 2)]
)
def test_a_single_boosted_item_comes_to_its_place_divided_by_the_factor(factor, before, after):
    scores, factors = -np.arange(12, dtype=np.float32)[None], np.ones(12)
    factors[before - 1] = factor
    _, columns, _ = best.top(scores, 12, factors)
    others = [n for n in range(12) if n != before - 1]
    assert columns.tolist() == [*others[: after - 1], before - 1, *others[after - 1 :]]


@pytest.mark.parametrize("factors", [None, np.array([1, 2, 3, 0.5] * 3)])
@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 5), st.just(12)), elements=few_values),
    groups=arrays(np.int64, 12, elements=st.integers(-1, 3)),
    k=st.integers(1, 4),
    at_most=st.integers(1, 3),
)
def test_top_by_group_equals_a_loop(scores, groups, k, at_most, factors):
    want = []
    for row in range(len(scores)):
        counts, taken = Counter(), 0
        ones = np.ones(12) if factors is None else factors
        for _, column, score in slow_boosted_top(scores[[row]], 12, ones.tolist()):
            group = int(groups[column])
            counts[group] += 1
            if taken < k and (group < 0 or counts[group] <= at_most):
                want.append((row, column, score))
                taken += 1
    got = best._top_by_group(scores, k, groups, at_most, factors)
    assert [*zip(*(part.tolist() for part in got), strict=True)] == want


def _rankers():
    rankers = baseline_rankers(LOG, CATALOGUE, names=COUNTS)
    rankers += [attribute_ranker(CATALOGUE, *attribute) for attribute in ATTRIBUTES.items()]
    times = ItemFeatures(ItemHistory.of(LOG, CATALOGUE), CATALOGUE.index, time_features(False))
    parts = [r for r in rankers if r.name in ("window co-occurrence", *OTHERS)]
    rankers.append(BuyAgainRanker(2.0))
    histories = [tuple(RNG.permutation(ITEMS)[:5]) for _ in range(40)]
    examples = [
        RankingExample(f"u{n}", h, tuple(i for i in ITEMS if i not in h), "") for n, h in enumerate(histories)
    ]
    examples = [replace(e, target=str(RNG.choice(e.candidates))) for e in examples]
    rankers.append(BlendRanker("blend", parts, times, learn_weights(parts, times, examples)))
    return {r.name: r for r in rankers}


@pytest.mark.parametrize("dense_cells", [0, matrices.DENSE_CELLS])
@pytest.mark.parametrize("name", [*COUNTS, *OTHERS, REPEATS])
def test_a_batch_has_the_answers_of_each_question_alone(name, dense_cells, monkeypatch):
    """In blocks of two questions, for sparse and dense products, and by a sort of all scores."""
    monkeypatch.setattr("prefrec.rankers.matrices.DENSE_CELLS", dense_cells)
    monkeypatch.setattr("prefrec.rankers.transitions.DENSE_CELLS", dense_cells)
    monkeypatch.setattr(matrices, "CELLS_AT_A_TIME", 2 * best._ARRAYS * len(ITEMS))
    ranker, popular = _rankers()[name], Popular.of(PreparedData(CATALOGUE, [], [], [], LOG))
    boost = {"brand": {"b": 2, "c": 0.5}, "item_id": {"i7": 3}}
    selection = Selection(CATALOGUE, Rules(deny=["i3"], at_most=2, per="brand", boost=boost), 4, popular)
    histories = [tuple(RNG.choice([*ITEMS, "gone"], n)) for n in (3, 1, 0, 12, 7)]
    questions = [selection.question(history, () if name == REPEATS else history) for history in histories]
    together = answer_all(ranker, questions)
    for question, got in zip(questions, together, strict=True):
        (alone,) = answer_all(ranker, [question])
        assert (got.item_ids, got.method) == (alone.item_ids, alone.method)
        np.testing.assert_allclose(got.logps, alone.logps, rtol=1e-6)
        if question.history:
            assert got.item_ids == _slow(ranker, question, popular)


@pytest.mark.parametrize("name", [*COUNTS, *OTHERS, REPEATS])
def test_shared_candidates_have_the_scores_of_their_own_lists(name):
    ranker, items = _rankers()[name], Candidates([*ITEMS[::-1], "gone"] if name in COUNTS else ITEMS[::-1])
    rows = [Query(tuple(RNG.choice([*ITEMS, "gone"], n)), items.ids) for n in (3, 1, 0, 12)]
    for some in (rows, rows[:1], []):
        shared = ranker.score(Queries(some, items))
        assert shared.shape == (len(some), len(items))
        np.testing.assert_array_equal(shared, ranker.score(some) if some else shared)


def _slow(ranker, question, popular):
    kept = [i for i in ITEMS if i not in question.seen and i != "i3"]
    (scores,) = ranker.score([Query(tuple(question.history), tuple(kept))]).astype(np.float32)
    order = sorted(range(len(kept)), key=lambda n: (-scores[n], popular.position[kept[n]]))
    counts, answer, brands = Counter(), [], dict(zip(ITEMS, CATALOGUE.frame["brand"], strict=True))
    factors = {n: {"a": 1, "b": 2, "c": 0.5}[brands[kept[n]]] * (3 if kept[n] == "i7" else 1) for n in order}
    moved = sorted((place / factors[n], -factors[n], place, n) for place, n in enumerate(order, 1))
    for *_, n in moved:
        brand = brands[kept[n]]
        counts[brand] += 1
        if counts[brand] <= 2:
            answer.append(kept[n])
    return answer[:4]


class BestFirst:
    """Reranks: the first candidate is best, so that an answer depends on which others there are."""

    name, is_of_list = "best first", True

    def score(self, examples):
        width = max(len(e.candidates) for e in examples)
        return np.array([[-c if c < len(e.candidates) else -np.inf for c in range(width)] for e in examples], float)


def test_a_ranker_of_lists_gets_only_the_items_that_may_be_answered():
    ranker = BestFirst()
    assert isinstance(ranker, ListRanker)
    selection = Selection(CATALOGUE, Rules(deny=["i0"]), 2)
    answers = answer_all(ranker, [selection.question(["i5"], seen) for seen in (["i1"], ["i2", "i5"], ITEMS)])
    assert [a.item_ids for a in answers] == [["i2", "i3"], ["i1", "i3"], []]
    assert answers[0].logps.tolist() == [0, -1]


def test_two_steps_equal_a_walk_of_the_first_ring(monkeypatch):
    rows = [Query(tuple(RNG.choice(ITEMS, 3)), tuple(ITEMS)) for _ in range(20)]
    quick = TransitionGraphRanker.fit(LOG, CATALOGUE).score(rows)
    monkeypatch.setattr("prefrec.rankers.transitions.DENSE_CELLS", 0)
    np.testing.assert_array_equal(TransitionGraphRanker.fit(LOG, CATALOGUE).score(rows), quick)
    assert {0, 1, 2} == {*np.unique(quick // 100).astype(int)}
