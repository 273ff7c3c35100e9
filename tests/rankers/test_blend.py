"""Blends: the features that they are made of, and what they learn."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.rankers import blend as blends
from prefrec.rankers.blend import BlendConfig, BlendRanker, RerankedBlend, Weights, learn_rerank, learn_weights
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features

ITEMS = [f"i{n}" for n in range(80)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": ITEMS}))
HISTORY, INDEX = ItemHistory.of(make_log([]), CATALOGUE), {item: n for n, item in enumerate(ITEMS)}
TIMES = ItemFeatures(HISTORY, INDEX, time_features(False))


class Table:
    """Scores that depend on user and item, and the rows' targets get `gain` more."""

    def __init__(self, name: str, gain: float, seed: int) -> None:
        self.name, self.gain, self.seed = name, gain, seed
        self.asked: list[int] = []

    def score(self, examples) -> np.ndarray:
        self.asked += [len(e.candidates) for e in examples]
        return np.array([[self._score(e.user_id, item) for item in e.candidates] for e in examples])

    def _score(self, user: str, item: str) -> float:
        rng = np.random.default_rng([self.seed, int(user[1:]), int(item[1:])])
        return rng.normal() + self.gain * (TARGETS[user] == item)


RNG = np.random.default_rng(0)
ROWS = [RankingExample(f"u{b}", (), tuple(RNG.permutation(ITEMS)), ITEMS[int(RNG.integers(80))]) for b in range(200)]
TARGETS = {e.user_id: e.target for e in ROWS}
GOOD, WEAK = Table("good", 3.0, 1), Table("weak", 0.0, 2)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return learn_weights([GOOD, WEAK], TIMES, ROWS)


def test_the_part_that_knows_the_target_has_the_weight(weights):
    whole = weights.logits[""]
    of = dict(zip(whole.names, whole.weights, strict=True))
    assert of["good"] > 10 * abs(of["weak"])
    assert of["popularity"] == 0  # alike for all items
    assert weights.logits["good"].names == ("weak", "popularity")
    assert weights.logits[blends.TIME].names == ("good", "weak")
    told = blends.weights_sentence("blend", weights)
    assert told.startswith("blend: weights learnt on 200 validation examples: good +")


def test_a_blend_scores_by_its_weights(weights):
    blend = BlendRanker("blend", [GOOD, WEAK], TIMES, weights)
    whole = weights.logits[""]
    per_unit, scores = whole.weights / whole.scale, blend.score(ROWS[:3])
    slow = sum(of * ranker.score(ROWS[:3]) for ranker, of in zip([GOOD, WEAK], per_unit, strict=False))
    np.testing.assert_allclose(scores - scores[:, :1], slow - slow[:, :1], atol=1e-4)
    without = BlendRanker("blend", [GOOD, WEAK], TIMES, weights, excluded="good")
    assert [part.name for part in without.parts] == ["weak"]
    assert BlendRanker("blend", [GOOD, WEAK], TIMES, weights, excluded=blends.TIME).times is None


def test_weights_survive_json(weights):
    learnt = replace(weights, reranked=weights.logits[blends.TIME])
    again = Weights.from_json(json.loads(json.dumps(learnt.to_json())))
    rankers = [BlendRanker("blend", [GOOD, WEAK], TIMES, w) for w in (learnt, again)]
    assert np.array_equal(*(ranker.score(ROWS[:5]) for ranker in rankers))
    assert again.reranked.names == ("good", "weak")


def test_a_crossed_blend_knows_nothing_of_a_row_from_the_row_itself(weights):
    """Other targets of a fold's users change the other folds' weights, and not the fold's own scores."""
    folds = blends.user_folds(ROWS, blends.FOLDS)
    assert set(folds) == set(range(blends.FOLDS))
    changed = [e if fold else replace(e, target=e.candidates[0]) for e, fold in zip(ROWS, folds, strict=True)]
    other = learn_weights([GOOD, WEAK], TIMES, changed)
    one, two = (BlendRanker("blend", [GOOD, WEAK], TIMES, w, crossed=True).score(ROWS) for w in (weights, other))
    assert weights.units == other.units
    own = folds == 0
    np.testing.assert_allclose(one[own], two[own], atol=1e-4)  # where the fit stops
    assert not np.isclose(one[~own], two[~own]).all(axis=1).any()
    slow = learn_weights([GOOD, WEAK], TIMES, [e for e, f in zip(ROWS, folds, strict=True) if f != 0])
    np.testing.assert_allclose(weights.folds[0].weights, slow.logits[""].weights, atol=1e-3)


def test_a_fold_without_other_users_has_no_opinion():
    one = [e for e in ROWS if blends.user_folds([e], blends.FOLDS)[0] == 0]
    scores = BlendRanker("b", [GOOD], TIMES, learn_weights([GOOD], TIMES, one), crossed=True).score(one)
    assert np.ptp(scores, axis=1).max() == 0


def test_title_models_reorder_the_best_alone(weights):
    blend = BlendRanker("blend", [WEAK], TIMES, learn_weights([WEAK], TIMES, ROWS))
    model = Table("titles", 3.0, 3)
    learnt = learn_rerank(blend, [model], ROWS)
    assert set(model.asked) == {blends.RERANKED}
    reranked = RerankedBlend(blend, [model], (learnt.reranked,))
    base, scores = blend.score(ROWS), reranked.score(ROWS)
    per_unit = learnt.reranked.weights / learnt.reranked.scale
    slow = per_unit[0] * base + per_unit[1] * model.score(ROWS)
    for got, before, want, own in zip(scores, base, slow, blends.best_columns(base), strict=True):
        others = np.setdiff1d(np.arange(80), own)
        assert got[own].min() > got[others].max()
        np.testing.assert_array_equal(got[others], before[others])
        np.testing.assert_allclose(got[own] - got[own[0]], want[own] - want[own[0]], rtol=1e-3, atol=1e-3)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_scores_keep_their_order_and_their_empty_places(scores):
    values = np.array([[*scores, -np.inf]])
    feature = blends.scaled(values, blends.unit_of(values))
    assert np.isnan(feature[0, -1])
    order = np.argsort(scores, kind="stable")
    assert (np.diff(feature[0, :-1][order]) >= 0).all()
    assert (blends.unit_of(values) is None) == (min(scores) < 0 or max(scores) <= 0)


def test_a_nan_score_is_an_error(weights):
    with pytest.raises(ModelError, match="NaN"):
        BlendRanker("blend", [Table("good", np.nan, 1), WEAK], TIMES, weights).score(ROWS[:1])


def test_a_part_is_named_once():
    with pytest.raises(ValueError, match="named twice"):
        BlendConfig(parts=["sft", "sft"])
