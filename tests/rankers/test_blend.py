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
from prefrec.rankers import blend_learning
from prefrec.rankers.blend import BlendConfig, BlendRanker, RerankedBlend, Weights
from prefrec.rankers.blend_learning import learn_rerank, learn_weights
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features
from prefrec.rankers.logit import Choices, fit_logit
from prefrec.rankers.matrices import mean_ndcg

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
    assert weights.logits[blends.POPULARITY].names == ("good", "weak")
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
    assert BlendRanker("blend", [GOOD, WEAK], TIMES, weights, excluded=blends.POPULARITY).of_items == []


@pytest.mark.parametrize("select", [False, True])
def test_a_part_may_have_the_name_of_an_item_feature(weights, select, monkeypatch):
    """A log without dates has the feature popularity, and popularity can be a part."""
    monkeypatch.setattr(
        blend_learning, "RIDGES", (1.0,)
    )  # so that the twin, which has fewer parts, is shrunk as much
    assert TIMES.names == ["popularity"]
    named = Table("popularity", WEAK.gain, 2)
    learnt = learn_weights([GOOD, named], TIMES, ROWS, select=select)
    if not select:
        assert {excluded: logit.names for excluded, logit in learnt.logits.items()} == {
            "": ("good", "popularity", "popularity"),
            "good": ("popularity", "popularity"),
            "popularity": ("good", "popularity"),
            blends.POPULARITY: ("good", "popularity"),
        }
        twin = learn_weights([GOOD], TIMES, ROWS).logits[""]
        np.testing.assert_allclose(learnt.logits["popularity"].weights, twin.weights, atol=1e-5)
    for excluded in learnt.logits:
        scores = BlendRanker("blend", [GOOD, named], TIMES, learnt, excluded).score(ROWS)
        assert np.isfinite(scores).any(axis=1).all()


def test_weights_survive_json(weights):
    learnt = replace(weights, reranked=weights.logits[blends.POPULARITY])
    again = Weights.from_json(json.loads(json.dumps(learnt.to_json())))
    rankers = [BlendRanker("blend", [GOOD, WEAK], TIMES, w) for w in (learnt, again)]
    assert np.array_equal(*(ranker.score(ROWS[:5]) for ranker in rankers))
    assert again.reranked.names == ("good", "weak")


def test_an_out_of_fold_blend_knows_nothing_of_a_row_from_the_row_itself(weights):
    """Other targets of a fold's users change the other folds' weights, and not the fold's own scores."""
    folds = blends.user_folds(ROWS, blends.FOLDS)
    assert set(folds) == set(range(blends.FOLDS))
    changed = [e if fold else replace(e, target=e.candidates[0]) for e, fold in zip(ROWS, folds, strict=True)]
    other = learn_weights([GOOD, WEAK], TIMES, changed)
    one, two = (BlendRanker("blend", [GOOD, WEAK], TIMES, w, out_of_fold=True).score(ROWS) for w in (weights, other))
    assert weights.units == other.units
    own = folds == 0
    np.testing.assert_allclose(one[own], two[own], atol=1e-4)  # where the fit stops
    assert not np.isclose(one[~own], two[~own]).all(axis=1).any()
    slow = learn_weights([GOOD, WEAK], TIMES, [e for e, f in zip(ROWS, folds, strict=True) if f != 0])
    np.testing.assert_allclose(weights.folds[0].weights, slow.logits[""].weights, atol=1e-3)


def test_a_fold_without_other_users_has_no_opinion():
    one = [e for e in ROWS if blends.user_folds([e], blends.FOLDS)[0] == 0]
    scores = BlendRanker("b", [GOOD], TIMES, learn_weights([GOOD], TIMES, one), out_of_fold=True).score(one)
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


def test_title_models_reorder_nothing_if_no_target_is_among_the_best():
    blend = BlendRanker("blend", [WEAK], TIMES, learn_weights([WEAK], TIMES, ROWS))
    best = blends.best_columns(blend.score(ROWS))
    missed = [e for e, own in zip(ROWS, best, strict=True) if e.target_index not in own]
    assert 0 < len(missed) < len(ROWS)
    model = Table("titles", 3.0, 3)
    learnt = learn_rerank(blend, [model], missed)
    assert learnt == blend.weights
    assert learnt.reranked is None
    assert model.asked == []


class Silent(Table):
    """Scores no candidate of some users."""

    def __init__(self, users) -> None:
        super().__init__("silent", 0.0, 5)
        self.users = users

    def score(self, examples) -> np.ndarray:
        is_silent = np.array([e.user_id in self.users for e in examples])
        return np.where(is_silent[:, None], -np.inf, super().score(examples))


def test_title_models_are_not_asked_where_the_blend_can_score_nothing():
    learnt = learn_weights([WEAK], TIMES, ROWS)
    one, other = {e.user_id for e in ROWS[::3]}, {e.user_id for e in ROWS}
    blend = BlendRanker("blend", [Silent(one)], TIMES, replace(learnt, units={"silent": None}))
    heard = [e for e in ROWS if e.user_id not in one]
    model = Table("titles", 3.0, 3)
    found = learn_rerank(blend, [model], ROWS)
    assert found == learn_rerank(blend, [model], heard)
    assert set(model.asked) == {blends.RERANKED}
    scores = RerankedBlend(blend, [model], (found.reranked,)).score(ROWS)
    assert np.isneginf(scores[::3]).all()
    np.testing.assert_array_equal(
        scores[[e.user_id not in one for e in ROWS]],
        RerankedBlend(blend, [model], (found.reranked,)).score(heard),
    )
    blend, model = BlendRanker("blend", [Silent(other)], TIMES, blend.weights), Table("titles", 3.0, 3)
    assert learn_rerank(blend, [model], ROWS) == blend.weights
    assert np.isneginf(RerankedBlend(blend, [model], (found.reranked,)).score(ROWS[:2])).all()
    assert model.asked == []


def test_without_one_of_two_title_models_the_weights_are_those_of_the_other_alone():
    blend = BlendRanker("blend", [WEAK], TIMES, learn_weights([WEAK], TIMES, ROWS))
    one, other = Table("titles", 3.0, 3), Table("more titles", 1.0, 4)
    learnt = learn_rerank(blend, [one, other], ROWS)
    assert learnt.reranked.names == ("blend", "titles", "more titles")
    for excluded, kept in ((one, other), (other, one)):
        alone = learn_rerank(blend, [kept], ROWS)
        assert alone.reranked_without == {}
        found = learnt.reranked_without[excluded.name]
        assert found.names == ("blend", kept.name)
        np.testing.assert_allclose(found.weights, alone.reranked.weights, rtol=1e-4)
        scores = RerankedBlend(blend, [kept], (found,)).score(ROWS)
        np.testing.assert_allclose(scores, RerankedBlend(blend, [kept], (alone.reranked,)).score(ROWS), rtol=1e-4)
    again = Weights.from_json(learnt.to_json())
    assert {*again.reranked_without} == {"titles", "more titles"}


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


@pytest.mark.parametrize("name", ["time", "item popularity", "own past"])
def test_a_part_does_not_have_the_name_of_features(name):
    """`without time` would leave out both."""
    with pytest.raises(ValueError, match=f"'{name}' is the name of features: give the ranker another name"):
        BlendConfig(parts=[name, "sft"])


NOISE = [Table("noise", 0.0, 3), Table("more noise", 0.0, 4)]


def test_parts_that_do_not_help_are_left_out_and_told():
    selected = learn_weights([GOOD, *NOISE], TIMES, ROWS, select=True)
    assert selected.logits[""].names[0] == "good"
    assert [*selected.units] == ["good"]
    assert {"noise", "more noise"} <= {*selected.left_out}
    assert all(gain <= error for gain, error in selected.left_out.values())
    alone = learn_weights([GOOD], TIMES, ROWS)
    blends_of = [BlendRanker("blend", [GOOD, *NOISE], TIMES, w) for w in (selected, alone)]
    assert [part.name for part in blends_of[0].parts] == ["good"]
    np.testing.assert_allclose(blends_of[0].score(ROWS[:5]), blends_of[1].score(ROWS[:5]), rtol=1e-6)
    again = Weights.from_json(json.loads(json.dumps(selected.to_json())))
    assert again.left_out == selected.left_out
    told = blends.weights_sentence("blend", selected)
    assert "; left out, because their gain in log-likelihood is within a standard error: " in told
    assert all(f"{part} " in told for part in selected.left_out)


def test_parts_that_help_stay():
    other = Table("other", 1.0, 5)
    selected = learn_weights([GOOD, other], TIMES, ROWS, select=True)
    assert [*selected.left_out] == [blends.POPULARITY]
    whole = learn_weights([GOOD, other], TIMES, ROWS).logits[""]
    np.testing.assert_allclose(selected.logits[""].weights, whole.weights[:2], atol=1e-5)


def _features(counts, start: int, is_dated: bool) -> ItemFeatures:
    """Item features of a log in which item n has `counts[n]` interactions, one a second."""
    rows = [(f"v{n}", item, start + n) for n, item in enumerate(np.repeat(ITEMS, counts).tolist())]
    return ItemFeatures(ItemHistory.of(make_log(rows), CATALOGUE), INDEX, time_features(is_dated))


def test_item_features_are_left_out_unless_they_help():
    """Of logs without dates, one tells nothing of the targets, and in the other the targets are popular."""
    random = np.random.default_rng(1).integers(1, 30, len(ITEMS))
    popular = np.array([1 + 5 * sum(e.target == item for e in ROWS) for item in ITEMS])
    for counts, left_out in ((random, {blends.POPULARITY}), (popular, set())):
        times = _features(counts, 0, False)
        selected = learn_weights([GOOD], times, ROWS, select=True)
        assert {*selected.left_out} == left_out
        blend = BlendRanker("blend", [GOOD], times, selected)
        assert {*blend.terms(ROWS[:2], ITEMS[0])} == {"good", blends.POPULARITY} - left_out
        less = BlendRanker("blend", [GOOD], times, selected, excluded=blends.POPULARITY)
        assert less.score(ROWS[:2]).shape == (2, 80)


def test_features_that_need_dates_are_a_part_of_their_own():
    """All interactions are of one day: recent popularity says what popularity says, and all items have one age."""
    popular = np.array([1 + 5 * sum(e.target == item for e in ROWS) for item in ITEMS])
    times = _features(popular, 1_500_000_000, True)
    whole = learn_weights([GOOD], times, ROWS)
    assert whole.logits[blends.TIME].names == ("good", "popularity")
    assert whole.logits[blends.POPULARITY].names == ("good", *times.names[1:])
    terms = BlendRanker("blend", [GOOD], times, whole).terms(ROWS[:2], ITEMS[0])
    assert {*terms} == {"good", blends.POPULARITY, blends.TIME}
    selected = learn_weights([GOOD], times, ROWS, select=True)
    assert len({blends.TIME, blends.POPULARITY} & {*selected.left_out}) == 1


def test_the_last_part_stays():
    selected = learn_weights([NOISE[0], WEAK], TIMES, ROWS, select=True)
    assert len(selected.units) == 1


@pytest.mark.parametrize(
    ("adds", "left_out"),
    [
        ({"one": (0.9, 1.0), "other": (5.0, 1.0)}, ["one"]),
        ({"one": (1.1, 1.0), "other": (5.0, 1.0)}, []),
        ({"one": (0.10, 0.20), "other": (0.05, 0.01)}, ["one"]),
    ],
    ids=["within an error", "above an error", "least per error"],
)
def test_a_part_is_left_out_if_it_adds_at_most_a_standard_error(monkeypatch, adds, left_out):
    """The test sets the gain of each part and its standard error."""
    given_by_power = {2.0**n: given for n, given in enumerate(adds.values())}

    def logps(_: Choices, kept: list[int], start: object = None) -> tuple[np.ndarray, np.ndarray]:
        return np.array(sum(2.0**n for n in kept)), np.zeros(len(kept))

    monkeypatch.setattr(blend_learning, "cross_fitted_logps", logps)
    monkeypatch.setattr(blend_learning, "_mean_by_user", lambda difference, _: given_by_power[float(difference)])
    features, targets = np.zeros((1, 3, 2), dtype=np.float32), np.zeros(1, dtype=np.int64)
    found = blend_learning.select_parts(features, targets, [*adds], 2, ROWS[:1])
    assert found == {name: adds[name] for name in left_out}


def _drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[RankingExample]]:
    """Return features [count, 40, 11], targets and examples of as many users: only the second feature matters."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 40, 11)).astype(np.float32)
    targets = (1.5 * features[..., 1] + rng.gumbel(size=(count, 40))).argmax(axis=1)
    return features, targets, [RankingExample(f"u{n}", (), ("i",), "i") for n in range(count)]


def test_a_blend_of_few_examples_is_as_good_as_its_best_part():
    test, targets, _ = _drawn(2000, 99)
    best = mean_ndcg(test[..., 1].astype(np.float64), targets)
    names, below, below_without = ["f"] * 11, [], []
    for seed in range(4):
        features, learnt_from, rows = _drawn(60, seed)
        found = blend_learning.Shrinkage.learnt(features, learnt_from, 3, rows)
        assert found.best_first[0] == 1
        assert found.ridge > 1
        choices = Choices.of(features, learnt_from)
        for to, fit in ((below, found.fit(choices)), (below_without, choices.fit())):
            to.append(best - mean_ndcg(choices.logit(fit, names).utility(test), targets))
    assert np.mean(below) < 0.01 < 0.02 < np.mean(below_without)


def test_many_examples_are_hardly_shrunk():
    features, targets, rows = _drawn(1500, 0)
    targets = (features @ np.linspace(1, 0.2, 11) + np.random.default_rng(1).gumbel(size=(1500, 40))).argmax(axis=1)
    found = blend_learning.Shrinkage.learnt(features, targets, 3, rows)
    assert found.ridge <= 10  # the greatest within a standard error of the best, so not always the smallest
    choices = Choices.of(features, targets)
    np.testing.assert_allclose(found.fit(choices).weights, choices.fit().weights, atol=0.03)


def test_without_the_best_part_weights_are_shrunk_to_the_next_one():
    features, targets, _ = _drawn(50, 3)
    choices, strong = Choices.of(features, targets), blend_learning.Shrinkage(1e6, (1, 2, 0))
    for kept, best in (([*range(11)], 1), ([0, 2, 3], 2), ([4, 7], 4)):
        alone = fit_logit(features[..., [best]], targets, ["f"]).weights[0]
        want = [alone if n == best else 0.0 for n in kept]
        np.testing.assert_allclose(strong.fit(choices, kept).weights, want, atol=1e-3)


def test_weights_by_fold_are_shrunk_to_the_best_part_without_the_fold():
    features, targets, rows = _drawn(60, 3)
    folds = blends.user_folds(rows, blends.FOLDS)
    choices = Choices.of(features, targets, folds, blends.FOLDS)
    strong = blend_learning.Shrinkage(1e6, (1, 2, 0))
    found = strong.fit_without_each_fold(choices, strong.fit(choices))
    for fold, fit in enumerate(found):
        alone = fit_logit(features[folds != fold][..., [1]], targets[folds != fold], ["f"])
        np.testing.assert_allclose(fit.weights[1] / choices.scale[1], alone.weights[0] / alone.scale[0], rtol=5e-3)
        assert abs(np.delete(fit.weights, 1)).max() < 1e-3


def test_cross_fitted_log_probabilities_equal_a_loop_over_folds():
    features = np.stack([part.score(ROWS[:60]) for part in (GOOD, WEAK, NOISE[0])], axis=2).astype(np.float32)
    features[3, 0] = np.nan  # its target is ignored
    targets, folds = np.zeros(60, dtype=int), blends.user_folds(ROWS[:60], blends.FOLDS)
    choices = Choices.of(features, targets, folds, blends.FOLDS)
    for kept in ([0, 1, 2], [0, 1]):
        found, _ = blend_learning.cross_fitted_logps(choices, kept)
        for number, fold in enumerate(folds):
            others = features[folds != fold][..., kept]
            utility = fit_logit(others, targets[folds != fold], ["f"] * len(kept)).utility(
                features[[number]][..., kept]
            )[0]
            real = utility[np.isfinite(utility)]
            want = 0.0 if number == 3 else real[0] - np.log(np.exp(real).sum())
            assert found[number] == pytest.approx(want, abs=5e-3)  # others are standardised by their own deviation


def test_columns_for_the_selection_hold_each_target_once(monkeypatch):
    monkeypatch.setattr(blend_learning, "SELECTED_ON", 5)
    targets = np.array([e.target_index for e in ROWS])
    number = np.broadcast_to(np.arange(80.0, dtype=np.float32), (len(ROWS), 80))[..., None]
    found = blend_learning._sampled_columns(number, targets)[..., 0]
    assert found.shape == (len(ROWS), 6)
    assert np.array_equal(found[:, 0], targets)
    drawn = np.nanmax(found[:, 1:], axis=0)
    for row, target in zip(found[:, 1:], targets, strict=True):
        assert np.array_equal(row, np.where(drawn == target, np.nan, drawn), equal_nan=True)


def test_errors_of_means_are_clustered_by_user():
    rows = [replace(ROWS[0], user_id=user) for user in "aab"]
    mean, error = blend_learning._mean_by_user(np.array([1.0, 2.0, 6.0]), rows)
    assert (mean, error) == pytest.approx((3.0, np.sqrt((1 - 3 + 2 - 3) ** 2 + (6 - 3) ** 2) / 3))
