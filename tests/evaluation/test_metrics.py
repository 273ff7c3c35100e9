"""Ranks and metrics against ir_measures (trec_eval's numbers), with a slow twin for the ranks."""

from functools import partial
from itertools import pairwise, permutations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ir_measures import RR, R, Success, nDCG

from prefrec.errors import ConfigError
from prefrec.evaluation import metrics
from prefrec.evaluation.metrics import expected_hits, expected_metrics, metrics_for, target_ranks


def _slow_rank(scores, target):
    return sorted(range(len(scores)), key=lambda c: -scores[c]).index(target) + 1


@pytest.fixture(scope="module")
def lists():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 20)), rng.integers(0, 20, size=200)


def test_ranks_equal_sorting(lists):
    ranks, tied = target_ranks(*lists)
    assert ranks.tolist() == [_slow_rank(row, t) for row, t in zip(*lists, strict=True)]
    assert not tied.any()


@pytest.mark.parametrize(
    ("name", "measure"),
    [(f"hr@{of['cutoff']}", of) for of in (R @ 1, Success @ 1, Success @ 5, R @ 10)]
    + [(f"ndcg@{of['cutoff']}", of) for of in (nDCG @ 5, nDCG @ 10)]
    + [("mrr", RR)],
)
def test_metrics_equal_ir_measures_row_by_row(lists, name, measure):
    scores, target = lists
    qrels = [ir_measures.Qrel(str(b), str(t), 1) for b, t in enumerate(target)]
    run = [ir_measures.ScoredDoc(str(b), str(c), s) for b, row in enumerate(scores) for c, s in enumerate(row)]
    theirs = {int(m.query_id): m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    ours = metrics_for((1, 5, 10))[name](*target_ranks(scores, target))
    np.testing.assert_allclose(ours, [theirs[b] for b in range(len(target))], atol=1e-12)


def _slow_expectation(gain, scores: np.ndarray, target: int) -> float:
    """The mean gain over all orders of the candidates that agree with the scores."""
    orders = permutations(range(len(scores)))
    fitting = [order for order in orders if all(scores[a] >= scores[b] for a, b in pairwise(order))]
    return float(np.mean([gain(np.array([1 + order.index(target)]))[0] for order in fitting]))


@settings(max_examples=40)
@given(scores=arrays(np.float64, (3, 5), elements=st.sampled_from([0.0, 0.5, 3.0])), target=st.integers(0, 4))
def test_metrics_are_means_over_all_orders_of_equal_scores(scores, target):
    ranks = target_ranks(scores, [target] * 3)
    gains = {f"hr@{k}": partial(metrics.hit_rate, k=k) for k in (1, 3)} | {"ndcg@3": partial(metrics.ndcg, k=3)}
    for name, gain in (gains | {"mrr": metrics.reciprocal_rank}).items():
        want = [_slow_expectation(gain, row, target) for row in scores]
        np.testing.assert_allclose(metrics_for((1, 3))[name](*ranks), want, atol=1e-12)


def test_constant_scores_have_the_metrics_of_a_random_order():
    ranks = target_ranks(np.zeros((7, 30)), np.arange(7))
    for name, metric in metrics_for((1, 5, 10)).items():
        assert metric(*ranks) == pytest.approx(expected_metrics([30], (1, 5, 10))[name])
    assert expected_hits(np.zeros((7, 4)), [0] * 7).tolist() == [0.25] * 7


@given(ranks=arrays(np.int64, 5, elements=st.integers(1, 9)), tied=arrays(np.int64, 5, elements=st.integers(0, 9)))
def test_a_tie_may_only_lower_the_value_of_its_best_rank(ranks, tied):
    for metric in metrics_for((1, 3)).values():
        assert (metric(ranks, tied) <= metric(ranks) + 1e-12).all()
        assert (metric(ranks, tied) >= metric(ranks + tied) - 1e-12).all()
        np.testing.assert_array_equal(metric(ranks, 0 * tied), metric(ranks))


@given(arrays(np.float64, (5, 6), elements=st.sampled_from([-2.0, 0.0, 0.5, 3.0])), st.permutations(range(6)))
def test_the_order_of_candidates_does_not_matter(scores, order):
    target = np.array([0, 1, 2, 3, 4])
    moved = np.array([order.index(t) for t in target])
    np.testing.assert_array_equal(target_ranks(scores, target), target_ranks(scores[:, order], moved))
    np.testing.assert_array_equal(expected_hits(scores, target), expected_hits(scores[:, order], moved))


@given(ranks=arrays(np.int64, 8, elements=st.integers(1, 30)))
def test_bounds_and_monotony(ranks):
    table = metrics_for((1, 3, 5))
    values = {name: metric(ranks) for name, metric in table.items()}
    np.testing.assert_array_equal(values["mrr"], 1.0 / ranks)  # to the last digit
    assert list(table) == ["hr@1", "hr@3", "hr@5", "ndcg@3", "ndcg@5", "mrr"]
    assert all(((v >= 0) & (v <= 1)).all() for v in values.values())
    assert (values["hr@1"] <= values["ndcg@3"]).all()
    assert (values["ndcg@3"] <= values["hr@3"]).all()
    assert (values["hr@3"] <= values["hr@5"]).all()


def test_a_target_below_the_best_has_no_hit():
    assert expected_hits([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]], [0, 0]).tolist() == [0.0, 0.5]


def test_empty_places_never_outrank():
    scores = np.array([[-5.0, -7.0, -np.inf], [1.0, 2.0, 3.0]])
    assert [found.tolist() for found in target_ranks(scores, [1, 0])] == [[2, 3], [0, 0]]
    assert expected_hits(scores, [0, 2]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("function", [target_ranks, expected_hits])
@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([[0.0, 1.0], [0.0, np.nan], [np.nan] * 2], [0, 0, 0], "2 of 3 rows have NaN scores, the first is row 1"),
        ([[0.0, 1.0], [0.0, -np.inf]], [1, 1], "target of row 1 is -inf"),
        ([[0.0, 1.0]], [2], "outside the 2 candidates"),
        ([[0.0, 1.0]], [-1], "outside the 2 candidates"),
        ([[0.0, 1.0]], [0, 1], r"expected scores \[B, C\]"),
        ([0.0, 1.0], [0], r"expected scores \[B, C\]"),
    ],
)
def test_bad_scores_are_refused_by_name(function, scores, target, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(scores), target)


def test_any_array_like_will_do():
    ranks, tied = target_ranks([[True, False], [False, True]], [0.0, 0.0])
    assert (ranks.tolist(), tied.tolist()) == ([1, 2], [0, 0])
    assert ranks.dtype == tied.dtype == np.int64
    assert {metric(ranks, tied).dtype for metric in metrics_for((1, 2)).values()} == {np.dtype(np.float64)}
    assert expected_hits([[True, False]], [0]).tolist() == [1]
    for shape in ((0, 3), (0, 0)):
        empty = target_ranks(np.zeros(shape), [])
        assert [part.tolist() for part in empty] == [[], []]
        assert metrics_for((5,))["mrr"](*empty).tolist() == []


def test_cut_offs_are_sorted_and_count_once():
    assert list(metrics_for((5, 2, 1, 2))) == ["hr@1", "hr@2", "hr@5", "ndcg@2", "ndcg@5", "mrr"]


@pytest.mark.parametrize("ks", [(0, 5), (2.5,), (True,), ("5",)])
def test_cut_offs_are_whole_numbers_from_one(ks):
    with pytest.raises(ConfigError, match="ks: cut-offs must be whole numbers of at least 1"):
        metrics_for(ks)


def test_expected_metrics_are_means_over_all_ranks():
    """Against shuffling: 20,000 random orders of lists of two lengths."""
    sizes = np.array([4, 12, 12])
    found = expected_metrics(sizes, (1, 3, 10))
    assert list(found) == list(metrics_for((1, 3, 10)))
    rng = np.random.default_rng(0)
    ranks = np.concatenate([rng.integers(1, size + 1, 20_000) for size in sizes])
    for name, metric in metrics_for((1, 3, 10)).items():
        assert found[name] == pytest.approx(metric(ranks).mean(), abs=0.01)
    assert found["hr@1"] == pytest.approx((1 / 4 + 2 / 12) / 3)
    assert expected_metrics(np.array([255], dtype=np.uint8), [5])["hr@5"] == pytest.approx(5 / 255)
