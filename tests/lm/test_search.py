"""prefrec.lm.search: best-first search against sorting the exact scores."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.errors import ModelError
from prefrec.lm.catalogue import catalogue_logps, trie_reader
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.search import TopK, rescored, top_k
from prefrec.lm.trie import Trie
from tiny import tiny_llama

VOCABULARY = 64
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=6).map(tuple)
ANSWERS = st.lists(TOKENS, min_size=1, max_size=25)
LAYOUTS = ["cached", "repeated", "separate"]


@pytest.fixture
def model():
    return tiny_llama(VOCABULARY)


def sorted_scores(model, trie: Trie, left_out=()) -> tuple[np.ndarray, np.ndarray]:
    """The slow twin: all items that stay, best first, and all scores."""
    logps = catalogue_logps(model, PROMPT, trie)
    order = np.lexsort((np.arange(len(logps)), -logps))
    return order[~np.isin(order, left_out)], logps


@settings(deadline=None, max_examples=60)
@given(ANSWERS, st.integers(1, 30), st.integers(1, 5), st.sampled_from(["cached", *LAYOUTS]), st.data())
def test_equals_sorting_the_exact_scores(answers, k, width, layout, data):
    model, trie = tiny_llama(VOCABULARY), Trie.build(answers)
    left_out = data.draw(st.lists(st.integers(0, len(answers) - 1), max_size=len(answers)))
    got = top_k(model, PROMPT, trie, k, without=left_out, layout=layout, width=width)
    order, logps = sorted_scores(model, trie, left_out)
    assert (got.exact, got.logps.dtype) == (True, np.float32)
    assert len(got.items) == len(order[:k])
    assert not set(got.items.tolist()) & set(left_out)
    np.testing.assert_allclose(got.logps, logps[order[:k]], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.logps, logps[got.items], rtol=0, atol=1e-4)
    assert len(set(got.items.tolist())) == len(got.items)


def many_titles(n: int = 300) -> Trie:
    rng = np.random.default_rng(0)
    return Trie.build([(*rng.integers(10, 40, rng.integers(1, 7)).tolist(), 2) for _ in range(n)])


def test_equal_titles_come_in_the_order_of_the_catalogue(model):
    titles = [(5, 2), (6, 7, 2), (8, 2)]
    best = titles.pop(int(np.argmax(catalogue_logps(model, PROMPT, Trie.build(titles)))))
    trie = Trie.build([titles[0], best, titles[1], best, best])
    for k in (1, 2, 3):
        assert top_k(model, PROMPT, trie, k).items.tolist() == [1, 3, 4][:k]


@pytest.mark.parametrize("width", [1, 8, 1000])
def test_most_of_a_large_trie_is_not_read(model, width):
    trie = many_titles()
    order, logps = sorted_scores(model, trie)
    got = top_k(model, PROMPT, trie, 5, width=width)
    np.testing.assert_allclose(got.logps, logps[order[:5]], rtol=0, atol=1e-4)
    assert got.exact
    assert got.calls < (len(trie.inner) / 3 if width == 1 else 20)


@pytest.mark.parametrize("max_calls", [0, 1, 2, 4])
def test_bounded_work_says_that_nothing_is_proven(model, max_calls):
    trie = many_titles()
    got = top_k(model, PROMPT, trie, 50, width=4, max_calls=max_calls)
    order, logps = sorted_scores(model, trie)
    assert (got.calls, got.exact) == (max_calls, False)
    assert len(got.items) < 50 or got.logps[-1] < logps[order[49]]
    np.testing.assert_allclose(got.logps, logps[got.items], rtol=0, atol=1e-4)
    assert (np.diff(got.logps) <= 0).all()


def test_a_title_without_branches_takes_one_call(model):
    got = top_k(model, PROMPT, Trie.build([(5, 6, 7, 8, 10, 11, 2)]), 1)
    assert (got.calls, got.items.tolist(), got.exact) == (1, [0], True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_number_is_an_error_and_not_proven(model, layout):
    trie = many_titles()
    with torch.no_grad():
        model.lm_head.weight[20].fill_(torch.nan)
    for ask in (partial(catalogue_logps, model, PROMPT, trie), partial(top_k, model, PROMPT, trie, 5)):
        with pytest.raises(ModelError, match="not finite; use another dtype, or train again"):
            ask(layout=layout)
    assert top_k(model, PROMPT, trie, 5, layout=layout, without=range(300)).exact  # nothing is asked for


def test_k_is_at_least_one(model):
    with pytest.raises(ValueError, match="k is at least 1, got 0"):
        top_k(model, PROMPT, many_titles(3), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_scored_again_as_if_each_were_alone(layout, dtype):
    """Equal to the last bit in 16 bits, whatever the first scores and the order were."""
    model, trie = tiny_llama(VOCABULARY).to(dtype), many_titles(60)
    best = top_k(model, PROMPT, trie, 20)
    shuffled = np.random.default_rng(0).permutation(best.items)
    got = rescored(trie_reader(model, PROMPT, trie, layout), TopK(shuffled, np.zeros(20, np.float32), True, 7))
    single = (Trie.build([trie.path(trie.terminals[i])]) for i in got.items)
    alone = [top_k(model, PROMPT, one, 1, layout=layout).logps[0] for one in single]
    assert got.logps.tolist() == alone
    assert sorted(got.items) == sorted(best.items)
    assert (np.diff(got.logps) <= 0).all()
    assert (got.exact, got.calls) == (True, 7)
    if dtype == torch.float32:
        np.testing.assert_allclose(got.logps, best.logps, rtol=0, atol=1e-4)


def test_scores_within_a_catalogue_again(model):
    trie = many_titles(60)
    within = CatalogueSoftmax([trie.path(n) for n in trie.terminals])
    best = top_k(model, PROMPT, within.trie, 20, within=within)
    got = rescored(trie_reader(model, PROMPT, within.trie, "cached", within), best)
    np.testing.assert_allclose(got.logps, best.logps, rtol=0, atol=1e-4)
    alone = CatalogueSoftmax([(5, 6, 2)])  # nothing branches, so the one title is certain
    reader = trie_reader(model, PROMPT, alone.trie, "cached", alone)
    sure = rescored(reader, top_k(model, PROMPT, alone.trie, 1, within=alone))
    assert sure.logps.tolist() == [0.0]
