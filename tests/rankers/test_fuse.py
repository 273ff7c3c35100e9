"""prefrec.rankers.fuse against slow twins, and weights that are known beforehand."""

import math
import statistics

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.evaluation import metrics_for, target_ranks
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker, LMRanker, PopularityRanker, Ranker
from prefrec.rankers.fuse import (
    GRID,
    SIGNED_GRID,
    FuseConfig,
    FuseRanker,
    TitlePriorRanker,
    choose_weights,
    formula,
    fusion_sentence,
    standardise,
    weighted_sum,
)
from prefrec.rankers.reference import pad_scores
from slow import slow_logps
from tiny_run import TITLES

NDCG = metrics_for([10])["ndcg@10"]
IDS = [f"i{i}" for i in range(len(TITLES))]
ROWS = [
    RankingExample("u0", ("i1", "i2"), ("i5", "i6", "i7", "i8"), "i5"),
    RankingExample("u1", ("i7",), ("i8", "i9"), "i9"),
]
SCORE = st.one_of(st.sampled_from([-math.inf, 0.1, 1.0]), st.floats(-1e6, 1e6, allow_subnormal=False))
ARRAYS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(SCORE, min_size=width, max_size=width), min_size=1, max_size=5)
)


def slow_standardise(row: list[float]) -> list[float]:
    finite = [s for s in row if math.isfinite(s)]
    if not finite or min(finite) == max(finite):
        return [0.0 if math.isfinite(s) else s for s in row]
    mean, deviation = statistics.fmean(finite), statistics.pstdev(finite)
    return [(s - mean) / deviation if math.isfinite(s) else s for s in row]


@given(ARRAYS)
def test_standardised_scores_equal_the_slow_twin(rows):
    want = [slow_standardise(row) for row in rows]
    np.testing.assert_allclose(standardise(np.array(rows)), want, rtol=1e-5, atol=1e-5)


def test_a_constant_row_is_zeros_whatever_rounding_does():
    assert standardise(np.full((1, 3), 0.1)).tolist() == [[0, 0, 0]]
    assert standardise(np.array([[0.1, -np.inf, 0.1], [-np.inf] * 3])).tolist() == [[0, -np.inf, 0], [-np.inf] * 3]
    assert standardise(np.empty((0, 0))).shape == (0, 0)


def test_empty_places_stay_empty_under_any_weight():
    """Also under 0 and negative weights, which would make -inf a NaN or the highest score."""
    first, second = np.array([[1.0, 2.0, -np.inf]]), np.array([[5.0, -np.inf, -np.inf]])
    assert weighted_sum([first, second], [1.0, -2.0]).tolist() == [[-9.0, -np.inf, -np.inf]]
    assert weighted_sum([first, second], [2.0, 0.0]).tolist() == [[2.0, 4.0, -np.inf]]


def test_scores_are_the_weighted_sum_of_standardised_ones():
    one, two = PopularityRanker({"i5": 3, "i6": 1, "i8": 9}, "one"), PopularityRanker({"i7": 2, "i9": 4}, "two")
    fused = FuseRanker("fused", [one, two], [1.0, 0.5])
    assert isinstance(fused, Ranker)
    want = [
        [a + 0.5 * b for a, b in zip(slow_standardise(x), slow_standardise(y), strict=True)]
        for x, y in (([3, 1, 0, 9], [0, 0, 2, 0]), ([9, 0], [0, 4]))
    ]
    np.testing.assert_allclose(fused.score(ROWS), pad_scores(want))
    assert fused.score([]).shape == (0, 0)


def test_a_part_without_weight_is_not_asked_and_nan_is_not_fused():
    class Broken:
        name = "broken"

        def score(self, examples):
            return np.full((len(examples), 4), np.nan)

    one = PopularityRanker({"i5": 3})
    assert np.isfinite(FuseRanker("fused", [one, Broken()], [1.0, 0.0]).score(ROWS)[0]).all()
    with pytest.raises(ModelError, match="ranker 'broken': 2 of 2 rows hold NaN scores"):
        FuseRanker("fused", [one, Broken()], [1.0, 1.0]).score(ROWS)
    with pytest.raises(ValueError, match="fused: all weights are 0"):
        FuseRanker("fused", [one, one], [0.0, 0.0])


@pytest.mark.parametrize("best", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.5, 0), (0, 1, 4), (1, 2, 0.25), (1, 1, -2)])
def test_known_weights_are_found(best):
    def quality(weights):
        """Highest where all ratios are those of `best`: the cosine of the two."""
        return round(float(np.dot(weights, best) / np.linalg.norm(weights) / np.linalg.norm(best)), 12)

    assert choose_weights([GRID, GRID, SIGNED_GRID], quality) == best


def test_ties_go_to_fewer_parts_then_to_smaller_weights():
    assert choose_weights([GRID, GRID], lambda w: 0.0) == (1, 0)
    assert choose_weights([GRID, GRID], lambda w: float(w[1] > 0)) == (0, 1)
    assert choose_weights([GRID, GRID], lambda w: float(w[0] > 0 and w[1] >= 0.5)) == (1, 0.5)


def _lists(seed: int, parts: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Standardised scores of parts that see the target through noise of their own, and the targets."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(6, size=12)
    lift = np.eye(6)[targets]
    return [standardise(rng.normal(size=(12, 6)) + rng.uniform(0, 3) * lift) for _ in range(parts)], targets


def _quality(scores, targets):
    return lambda weights: float(NDCG(*target_ranks(weighted_sum(scores, weights), targets)).mean())


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_part_alone_is_better_on_the_rows_that_choose(seed, parts):
    scores, targets = _lists(seed, parts)
    quality = _quality(scores, targets)
    weights = choose_weights([GRID] * parts, quality)
    assert quality(weights) >= max(float(NDCG(*target_ranks(z, targets)).mean()) for z in scores)
    assert next(w for w in weights if w) == 1
    assert set(weights) <= set(GRID)
    assert weights == choose_weights([GRID] * parts, quality)


@given(st.integers(0, 10_000))
def test_of_two_parts_no_ratio_of_the_grid_is_better(seed):
    """A slow twin tries each."""
    quality = _quality(*_lists(seed, 2))
    assert quality(choose_weights([GRID, GRID], quality)) == max(
        map(quality, [(0.0, 1.0), *((1.0, w) for w in GRID)])
    )


def test_better_than_each_part_where_they_know_different_things():
    rng = np.random.default_rng(0)
    targets = rng.integers(20, size=400)
    lift = np.eye(20)[targets]
    scores = [standardise(rng.normal(size=lift.shape) + 2 * lift) for _ in range(2)]
    quality = _quality(scores, targets)
    weights = choose_weights([GRID, GRID], quality)
    assert weights[1] in (0.5, 1, 2)  # equal ones are best in expectation
    assert quality(weights) > max(quality((1.0, 0.0)), quality((0.0, 1.0))) + 0.1


def test_title_prior_equals_the_slow_twin(model, bpe_tokenizer):
    catalogue = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))
    lm = LMRanker("lm", model, bpe_tokenizer, catalogue, load_template("movies/1"), objective="tokens")
    prior = TitlePriorRanker("title prior", CatalogueRanker(lm))
    with torch.no_grad():
        logps = slow_logps(model, lm.encoder.encode(lm.template, (), (), TITLES)).tolist()
    want = pad_scores([[logps[IDS.index(c)] for c in e.candidates] for e in ROWS])
    np.testing.assert_allclose(prior.score(ROWS), want, atol=1e-4)


def test_weights_in_words():
    weights = {"sft": 1.0, "unused": 0.0, "item-kNN": 2.0, "title prior": -0.5}
    assert formula(weights) == "sft + 2·item-kNN − 0.5·title prior"
    assert formula({"title prior": -1.0, "sft": 0.25}) == "− title prior + 0.25·sft"
    found = {"candidates": "list", "n": 1200, "weights": weights, "ndcg@10": {"sft": 0.5, "fused": 0.61}}
    assert fusion_sentence("fused", found) == (
        "fused = sft + 2·item-kNN − 0.5·title prior, weights chosen on 1,200 validation rows over their candidates: "
        "NDCG@10 0.610 there; alone: sft 0.500"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": ["sft"]}, "'sft' alone cannot be fused; name a second part or set title_prior"),
        ({"parts": ["sft", "sft"]}, r"a ranker is named twice \(sft, sft\)"),
        ({"parts": []}, "at least 1 item"),
    ],
)
def test_parts_that_cannot_be_fused(fields, message):
    with pytest.raises(ValidationError, match=message):
        FuseConfig(**fields)
    assert FuseConfig(parts=["sft"], title_prior=True).rows == 300
