"""Effects of history items on the scores of counts, title towers, blends and other rankers, against slow twins."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from drawn_towers import tower_of
from prefrec.data import Catalogue, Query
from prefrec.rankers.baselines import CooccurrenceRanker, ItemKNNRanker, PopularityRanker, TitleTfidfRanker
from prefrec.rankers.blend import POPULARITY, BlendRanker, RerankedBlend, Weights
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features
from prefrec.rankers.logit import Logit
from prefrec.rankers.transitions import TransitionGraphRanker
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.recommend.explain import reasons

ITEMS = [f"i{n:02}" for n in range(20)]
CATALOGUE = Catalogue(
    pl.DataFrame(
        {"item_id": [*ITEMS, "new"], "title": [*(f"Word{n % 4} Title{n % 5}" for n in range(20)), "Word1 x"]}
    )
)
RNG = np.random.default_rng(3)
LOG = make_log([(f"u{u}", ITEMS[i], n) for u in range(40) for n, i in enumerate(RNG.permutation(20)[:7])])
HISTORY = ("i03", "i11", "new", "i07", "i03", "i15")
QUERY, ITEM = Query(HISTORY, tuple(CATALOGUE.ids)), "i09"
SUMS = {
    "window": WindowCooccurrenceRanker.fit(LOG),
    "item-kNN": ItemKNNRanker.fit(LOG),
    "words": TitleTfidfRanker.fit(CATALOGUE),
    "EASE": EASERanker.fit(LOG),
    "last": CooccurrenceRanker.fit(LOG),
}


def _score(ranker, history, item="i09"):
    return float(ranker.score([replace(QUERY, history=tuple(history), candidates=(item,))])[0, 0])


@pytest.mark.parametrize("name", SUMS)
def test_terms_of_a_sum_equal_scores_of_one_item_at_its_place(name):
    ranker = SUMS[name]
    found = reasons(ranker, QUERY, ITEM)
    # An unknown item has no similarity to any, but it counts for the age of others.
    alone = [_score(ranker, ["?"] * n + [item] + ["?"] * (5 - n)) for n, item in enumerate(HISTORY)]
    assert [item for item, _ in found.effects] == [*HISTORY]
    np.testing.assert_allclose([effect for _, effect in found.effects], alone, atol=1e-12)
    assert found.method == "contributions"
    assert found.score == _score(ranker, HISTORY) == pytest.approx(sum(alone))
    assert found.rest == pytest.approx(0.0, abs=1e-7)  # EASE sums float32
    assert abs(found.score) > 0.001
    assert reasons(ranker, replace(QUERY, history=()), ITEM).effects == []
    unknown = reasons(ranker, QUERY, "nothing")
    assert (unknown.score, {effect for _, effect in unknown.effects}) == (0.0, {0.0})


def test_what_is_no_sum_is_explained_by_leaving_out():
    for ranker in (TransitionGraphRanker.fit(LOG, CATALOGUE), tower_of(CATALOGUE.ids, RNG.normal(size=(21, 4)))):
        _explained_by_leaving_out(ranker)
    assert {effect for _, effect in reasons(PopularityRanker.fit(LOG), QUERY, ITEM).effects} == {0.0}


def _explained_by_leaving_out(ranker):
    found = reasons(ranker, QUERY, ITEM)
    without = [_score(ranker, HISTORY[:n] + HISTORY[n + 1 :]) for n in range(6)]
    assert (found.method, found.rest, found.parts) == ("leave-one-out", None, {})
    np.testing.assert_allclose([effect for _, effect in found.effects], found.score - np.array(without), atol=1e-5)
    assert max(abs(effect) for _, effect in found.effects) > 0.1


def test_leaving_out_measures_the_last_items_of_the_whole_history(monkeypatch):
    monkeypatch.setattr("prefrec.recommend.explain.EXPLAINED", 2)
    ranker = TransitionGraphRanker.fit(LOG, CATALOGUE)
    found = reasons(ranker, QUERY, ITEM)
    without = [_score(ranker, HISTORY[:n] + HISTORY[n + 1 :]) for n in (4, 5)]
    assert ([item for item, _ in found.effects], found.not_explained) == ([*HISTORY[4:]], 4)
    np.testing.assert_allclose([effect for _, effect in found.effects], _score(ranker, HISTORY) - np.array(without))
    assert (
        len(reasons(SUMS["window"], QUERY, ITEM).effects),
        reasons(SUMS["window"], QUERY, ITEM).not_explained,
    ) == (6, 0)


def _logit(names):
    count = len(names)
    mean, scale = RNG.normal(size=count), 0.5 + RNG.random(count)
    return Logit(tuple(names), mean, scale, RNG.normal(size=count), np.ones(count), 10)


@pytest.fixture(scope="module")
def blend():
    times = ItemFeatures(ItemHistory.of(LOG, CATALOGUE), CATALOGUE.index, time_features(False))
    parts = [SUMS["window"], SUMS["words"], TransitionGraphRanker.fit(LOG, CATALOGUE)]
    units = {"window co-occurrence": 0.1, "title TF-IDF": None, "transition graph": 1.0}
    return BlendRanker("blend", parts, times, Weights(units, {"": _logit([*units, *times.names])}))


def test_effects_of_a_blend_are_differences_of_its_score_and_sums_of_its_parts(blend):
    found = reasons(blend, QUERY, ITEM)
    whole = float(blend.score([QUERY])[0, QUERY.candidates.index(ITEM)])
    rows = [replace(QUERY, history=HISTORY[:n] + HISTORY[n + 1 :]) for n in range(6)]
    slow = whole - blend.score(rows)[:, QUERY.candidates.index(ITEM)]
    np.testing.assert_allclose([effect for _, effect in found.effects], slow, atol=1e-5)
    assert (found.score, {*found.parts}) == (pytest.approx(whole), {*blend.weights.units, POPULARITY})
    np.testing.assert_allclose(np.sum([*found.parts.values()], axis=0), slow, atol=1e-5)
    assert {*found.parts[POPULARITY]} == {0.0}
    assert all(np.abs(found.parts[name]).max() > 0.001 for name in blend.weights.units)


def test_a_part_that_reranks_has_its_share_of_the_effects(blend):
    model, logit = SUMS["item-kNN"], _logit(["blend", "item-kNN"])
    reranked = RerankedBlend(blend, [model], (logit,))
    found = reasons(reranked, QUERY, ITEM)
    utility, knowing = reasons(blend, QUERY, ITEM), reasons(model, QUERY, ITEM)
    first, second = logit.weights / logit.scale
    for name, shares in utility.parts.items():
        np.testing.assert_allclose(found.parts[name], first * np.array(shares))
    without = [_score(model, HISTORY[:n] + HISTORY[n + 1 :]) for n in range(6)]
    np.testing.assert_allclose(found.parts["item-kNN"], second * (knowing.score - np.array(without)))
    np.testing.assert_allclose([e for _, e in found.effects], np.sum([*found.parts.values()], axis=0))


def test_an_item_outside_the_candidates_is_scored_beside_them(blend):
    found = reasons(blend, replace(QUERY, candidates=("i01", "i02")), ITEM)
    np.testing.assert_allclose(found.score, reasons(blend, QUERY, ITEM).score, atol=1e-5)
