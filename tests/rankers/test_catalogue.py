"""CatalogueRanker against the slow twin: one sequence a title, after a prompt that shows no candidates."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError, TokenizerError
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.matrices import best_items
from slow import slow_logps, slow_logps_within
from tiny import broken, tiny_llama
from tiny_run import TITLES

NAMES = [*TITLES, "Red", "Red Alien Night", "Old Heat"]
"""A title that others begin with, one that begins with another, and a duplicate."""
IDS = [f"i{i}" for i in range(len(NAMES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": NAMES}))
HISTORY = ("i3", "i17", "i42")


@pytest.fixture
def ranker(lm_of):
    return lambda **settings: CatalogueRanker(lm_of(catalogue=CATALOGUE, **settings))


def slow(ranker: CatalogueRanker, history=HISTORY, items=IDS) -> torch.Tensor:
    titles, lm = CATALOGUE.titles_of(items), ranker.lm
    with torch.no_grad():
        return slow_logps(lm.model, lm.encoder.encode(lm.template, CATALOGUE.titles_of(history), [], titles))


RNG = np.random.default_rng(0)
DRAWN = [RNG.permutation(IDS).tolist() for _ in range(4)]
EXAMPLES = [RankingExample(f"u{u}", tuple(d[: u + 1]), tuple(d[9 : 40 - 7 * u]), d[11]) for u, d in enumerate(DRAWN)]
"""Histories and lists of different lengths."""


@pytest.mark.parametrize("settings", [{}, {"chat": True}, {"template": "movies/continue"}, {"max_length": 35}])
def test_scores_equal_the_slow_twin(ranker, settings):
    whole = ranker(**settings)
    scores = whole.score(EXAMPLES)
    assert scores.shape == (4, 31)
    want = pad_sequence([slow(whole, e.history, e.candidates) for e in EXAMPLES], True, -torch.inf)
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4)
    assert (whole.lm.encoder.shortened > 0) == ("max_length" in settings)


@pytest.mark.parametrize("template", ["movies/1", "movies/continue", "movies/history"])
def test_scores_within_the_catalogue_are_those_of_the_language_model(ranker, template):
    """Whichever titles are asked about, all titles of the catalogue compete."""
    lm = ranker(template=template, objective="catalogue")
    (row,) = lm.score([RankingExample("u", HISTORY, tuple(IDS[9:16]), IDS[9])])
    (asked,) = lm.lm.score_sets([lm.lm.choices_after(HISTORY, IDS[9:16])])
    np.testing.assert_allclose(row, asked, rtol=0, atol=1e-4)
    choices = lm.lm.choices_after(HISTORY, IDS)
    want = np.array(slow_logps_within(lm.lm.model, choices.prompt, choices.answers))
    np.testing.assert_allclose(row, want[9:16], rtol=0, atol=1e-4)
    assert np.exp(want[: len(TITLES) + 2]).sum() == pytest.approx(1, abs=1e-4)  # without the second "Old Heat"
    for method in ("exact", "search"):
        best = lm.recommend(HISTORY, 5, method=method)
        np.testing.assert_allclose(best.logps, np.sort(want)[::-1][:5], rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("without", [(), HISTORY, IDS[5:]])
def test_recommends_the_best_of_the_slow_twin(ranker, method, without):
    lm = ranker()
    got = lm.recommend(HISTORY, 8, without=without, method=method)
    want = slow(lm).numpy()
    stay = [i for i in np.argsort(-want, kind="stable") if IDS[i] not in without][:8]
    assert (got.exact, got.method) == (True, method)
    assert len(got.item_ids) == len(stay)
    assert not set(got.item_ids) & set(without)
    np.testing.assert_allclose(got.logps, want[stay], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.logps, [want[IDS.index(i)] for i in got.item_ids], rtol=0, atol=1e-4)


def test_items_of_the_same_title_come_in_the_order_of_the_catalogue(ranker):
    for method in ("exact", "search"):
        best = ranker().recommend(HISTORY, len(IDS), method=method)
        first, second = (best.item_ids.index(i) for i in (IDS[NAMES.index("Old Heat")], IDS[-1]))
        assert second == first + 1
        assert best.logps[first] == best.logps[second]


@pytest.mark.parametrize("objective", ["tokens", "catalogue"])
@pytest.mark.parametrize("without", [(), IDS[5:]])
def test_in_16_bits_both_methods_give_the_same_list(ranker, objective, without):
    """Also where a title is read alone, and where fewer items are left than were asked for."""
    lm = ranker(model=tiny_llama().bfloat16(), objective=objective)
    for n in range(5):
        history = IDS[n : n + 3]
        exact, searched = (lm.recommend(history, 10, without=without, method=m) for m in ("exact", "search"))
        assert (exact.item_ids, exact.logps.tolist()) == (searched.item_ids, searched.logps.tolist())
        assert len(exact.item_ids) == min(10, len(IDS) - len(without))
        rows = lm.score([RankingExample("u", history, tuple(exact.item_ids), exact.item_ids[0])])
        np.testing.assert_allclose(exact.logps, rows[0], rtol=0, atol=0.5)


def test_the_trie_is_made_anew_where_titles_read_otherwise_after_another_prompt(ranker, bpe_tokenizer):
    """The next question of the same ranker has the scores of a fresh one."""
    lm = ranker(template="movies/continue")
    for history in (HISTORY, ("i9",), HISTORY):
        again = ranker(template="movies/continue").recommend(history, 5)
        assert lm.recommend(history, 5).item_ids == again.item_ids
    lists = [("i1", "i2", "i3"), ("i4", "i5"), ("i1", "i2", "i3")]
    scores = lm.score([RankingExample("u", HISTORY, c, c[0]) for c in lists])
    want = pad_sequence([slow(lm, items=candidates) for candidates in lists], True, -torch.inf)
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-4)


def test_models_that_cannot_branch_are_named_once(ranker, capsys):
    plain, checked = ranker(), ranker(model=broken(tiny_llama(), "refuses the mask"))
    for _ in range(2):
        np.testing.assert_allclose(checked.score(EXAMPLES), plain.score(EXAMPLES), rtol=0, atol=1e-4)
    told = "scoring the trie in the slower layout `separate`: a trie with model type 'llama'"
    assert capsys.readouterr().err.count(told) == 1


def test_what_is_wrong_is_named(ranker):
    with pytest.raises(DataError, match="item 'nobody' is not in the catalogue"):
        ranker().recommend(("nobody",), 3)
    with pytest.raises(TokenizerError, match="even without a history, but max_length is 16"):
        ranker(max_length=16).recommend(HISTORY, 3)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ranker().recommend(HISTORY, 0)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_the_best_places_are_those_of_a_stable_sort(scores: list[int], data: st.DataObject) -> None:
    without = data.draw(st.lists(st.sampled_from(range(len(scores))), unique=True))
    k = data.draw(st.integers(1, 14))
    want = [i for i in sorted(range(len(scores)), key=lambda i: -scores[i]) if i not in without][:k]
    assert best_items(np.array(scores, dtype=np.float32), k, without).tolist() == want
