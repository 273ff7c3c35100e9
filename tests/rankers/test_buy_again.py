"""The baseline *buy again* against its slow twin, and the choice of its half-life."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Candidates, Catalogue, Queries, Query, RankingExample
from prefrec.evaluation.metrics import ndcg, target_ranks
from prefrec.rankers.baselines import NO_REPEATS, baseline_rankers, unable
from prefrec.rankers.buy_again import HALF_LIVES, MOST_ROWS, BuyAgainRanker

ITEMS = tuple("abcdefgh")
histories = st.lists(st.sampled_from(ITEMS[:6]), max_size=12).map(tuple)
lists = st.lists(st.sampled_from((*ITEMS, "?")), min_size=1, unique=True).map(tuple)
half_lives = st.sampled_from((*HALF_LIVES, 0.7))


def slow_score(history: tuple[str, ...], candidate: str, half_life: float) -> float:
    total = 0.0
    for place, item in enumerate(history):
        if item == candidate:
            total += 0.5 ** ((len(history) - 1 - place) / half_life)
    return total


@given(st.lists(st.tuples(histories, lists), max_size=5), half_lives)
def test_buy_again_equals_its_slow_twin(asked, half_life):
    rows = [RankingExample("u", history, listed, listed[0]) for history, listed in asked]
    scores = BuyAgainRanker(half_life).score(rows)
    for row, e in zip(scores, rows, strict=True):
        want = [slow_score(e.history, c, half_life) for c in e.candidates]
        np.testing.assert_allclose(row[: len(want)], want, rtol=1e-9, atol=1e-12)
        assert np.isneginf(row[len(want) :]).all()


@given(histories, st.sampled_from(ITEMS), half_lives)
def test_contributions_of_buy_again_sum_to_the_score(history, item, half_life):
    ranker = BuyAgainRanker(half_life)
    terms = ranker.contributions(history, item)
    ((score,),) = ranker.score([RankingExample("u", history, (item,), item)])
    assert len(terms) == len(history)
    assert all(term == 0 for term, other in zip(terms, history, strict=True) if other != item)
    assert terms.sum() == pytest.approx(score)


def slow_ndcg(rows: list[RankingExample], half_life: float) -> float:
    """NDCG@10 in full ranking of a catalogue with many items that no one has; the target loses ties."""
    catalogue = (*ITEMS, *(f"other {n}" for n in range(20)))
    total = 0.0
    for e in rows:
        scores = np.array([slow_score(e.history, c, half_life) for c in catalogue])
        rank = int((scores >= scores[catalogue.index(e.target)]).sum())
        total += 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    return total


@given(st.lists(st.tuples(histories, st.sampled_from(ITEMS)), min_size=1, max_size=12))
def test_the_half_life_of_buy_again_is_that_of_the_highest_ndcg(asked):
    rows = [RankingExample("u", history, (target,), target) for history, target in asked]
    chosen = BuyAgainRanker.fit(rows).half_life
    reached = {h: slow_ndcg(rows, h) for h in HALF_LIVES}
    assert reached[chosen] == pytest.approx(max(reached.values()))


def test_habits_count_all_purchases_and_changes_the_last_ones():
    habit = RankingExample("u", tuple("aaaaabb"), ("a",), "a")
    change = RankingExample("u", tuple("aaaaabb"), ("b",), "b")
    assert BuyAgainRanker.fit([habit]).half_life == math.inf
    assert (
        BuyAgainRanker.fit([change] * 9 + [habit]).half_life == 5.0 or BuyAgainRanker.fit([change]).half_life <= 2.0
    )
    assert BuyAgainRanker.fit().half_life == math.inf


def test_many_validation_examples_are_read_in_part():
    habit, change = (RankingExample("u", tuple("aaaaabb"), (t,), t) for t in "ab")
    many = [habit, change, change] * MOST_ROWS
    assert BuyAgainRanker.fit(many).half_life == BuyAgainRanker.fit(many[::3]).half_life == math.inf
    assert BuyAgainRanker.fit(many[1:]).half_life == 2.0


def _log(pairs) -> pl.DataFrame:
    rows = [(user, item, 1_600_000_000 + n) for n, (user, item) in enumerate(pairs)]
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")


def test_buy_again_is_fitted_only_to_logs_with_repeats():
    catalogue = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"Item {i}" for i in ITEMS]}))
    once, twice = _log([("u", "a"), ("u", "b"), ("v", "a")]), _log([("u", "a"), ("u", "b"), ("u", "a")])
    assert unable(once, ["buy again"]) == {"buy again": NO_REPEATS}
    assert baseline_rankers(once, catalogue, names=["buy again"]) == []
    assert unable(twice, ["buy again"]) == {}
    change = RankingExample("u", tuple("aaaaabb"), ("b",), "b")
    (ranker,) = baseline_rankers(twice, catalogue, names=["buy again"], validation=[change])
    assert ranker.half_life == BuyAgainRanker.fit([change]).half_life < math.inf


def test_shared_candidates_have_the_scores_of_their_own_lists():
    rows = [Query(history, ITEMS) for history in (tuple("abca"), (), ("b", "elsewhere", "a"))]
    shared = Queries(rows, Candidates(ITEMS))
    for ranker in (BuyAgainRanker(), BuyAgainRanker(2.0)):
        np.testing.assert_array_equal(ranker.score(shared), ranker.score(rows))


def test_buy_again_ranks_own_items_and_leaves_the_others_tied():
    row = RankingExample("u", tuple("abca"), ITEMS, "b")
    ranks, tied = target_ranks(BuyAgainRanker(10.0).score([row]), [ITEMS.index("b")])
    assert (ranks[0], tied[0]) == (3, 0)
    assert float(ndcg(ranks, k=10)[0]) == pytest.approx(0.5)
    _, tied = target_ranks(BuyAgainRanker(10.0).score([row]), [ITEMS.index("h")])
    assert tied[0] == len(ITEMS) - 4
