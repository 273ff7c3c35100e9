"""prefrec_lab.beams: beam search and exact search against searches that read each prefix in a row of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.lm.catalogue import trie_reader
from prefrec.lm.search import top_k
from prefrec.lm.trie import Trie
from prefrec_lab import beams
from prefrec_lab.beams import Titles
from tiny import tiny_llama

VOCABULARY, END = 64, 9
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
TOKENS = st.lists(st.integers(0, 3), max_size=5).map(lambda tokens: (*tokens, END))
ANSWERS = st.lists(TOKENS, min_size=1, max_size=20)


@pytest.fixture
def model():
    return tiny_llama(VOCABULARY)


def titles(model, answers, without=()) -> Titles:
    return Titles(trie_reader(model, PROMPT, Trie.build(answers), "cached"), without)


@torch.no_grad()
def prefix_logp(model, prefix) -> float:
    """The log-probability of a prefix, by one pass over a row without a cache."""
    logits = model(input_ids=torch.tensor([[*PROMPT, *prefix]])).logits[0].log_softmax(dim=-1)
    places = range(len(PROMPT) - 1, len(PROMPT) + len(prefix) - 1)
    return sum(float(logits[place, token]) for place, token in zip(places, prefix, strict=True))


def slow_beams(model, answers, width) -> list[list[tuple[int, ...]]]:
    """The slow twin: the prefixes that are kept after each step."""
    kept, steps = [()], []
    while not all(prefix in answers for prefix in kept):
        found = {prefix for prefix in kept if prefix in answers}
        for prefix in kept:
            found |= {a[: len(prefix) + 1] for a in answers if len(a) > len(prefix) and a[: len(prefix)] == prefix}
        kept = sorted(found, key=lambda prefix: -prefix_logp(model, prefix))[:width]
        steps.append(kept)
    return steps


@settings(deadline=None, max_examples=30)
@given(ANSWERS, st.integers(1, 6), st.data())
def test_beams_equal_those_of_the_slow_search(answers, width, data):
    model = tiny_llama(VOCABULARY)
    without = data.draw(st.sets(st.integers(0, len(answers) - 1), max_size=len(answers) - 1))
    left = [answer for n, answer in enumerate(answers) if n not in without]
    own, slow = titles(model, answers, without), slow_beams(model, left, width)
    assert [[own.trie.path(node) for node in kept] for kept in own.search(width)] == slow
    found = own.beams(width)
    assert [answers[item] for item in found] == [a for a in slow[-1] for other in left if other == a]
    assert not without & set(found)
    for item in range(len(answers)):
        if item not in without:
            kept = [any(answers[item][: len(prefix)] == prefix for prefix in step) for step in slow]
            assert own.survival(item, width) == [*kept, False].index(False)


@settings(deadline=None, max_examples=60)
@given(ANSWERS, st.integers(1, 25), st.integers(1, 5), st.data())
def test_the_best_are_those_of_exact_ranking(answers, k, width, data):
    without = data.draw(st.sets(st.integers(0, len(answers) - 1), max_size=len(answers) - 1))
    model = tiny_llama(VOCABULARY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(beams, "WIDTH", width)
        own = titles(model, answers, without)
        found = own.best(k)
    exact = top_k(model, PROMPT, own.trie, k, without=[*without])
    assert found == exact.items.tolist()


def test_beams_as_wide_as_the_catalogue_are_exact_and_narrow_ones_are_not(model):
    rng = np.random.default_rng(0)
    answers = sorted({(*rng.integers(10, 40, rng.integers(1, 5)).tolist(), END) for _ in range(200)})
    own = titles(model, answers)
    assert own.beams(len(answers)) == own.best(len(answers))
    assert own.beams(1) != own.best(1)
    assert len(own.beams(16)) == 16


def test_all_searches_together_read_each_prefix_once(model, monkeypatch):
    rng = np.random.default_rng(0)
    answers = sorted({(*rng.integers(10, 40, rng.integers(1, 5)).tolist(), END) for _ in range(200)})
    read = []
    real = beams.children_logps
    monkeypatch.setattr(beams, "children_logps", lambda reader, nodes: read.extend(nodes) or real(reader, nodes))
    own = titles(model, answers)
    for width in (1, 4, 16):
        own.beams(width)
    own.best(10)
    once = len(read)
    assert once == len(set(read)) < len(own.trie.inner)
    own.survival(0, 16)
    assert len(read) == once


def test_the_log_probability_of_a_title_is_that_of_its_row(model):
    answers = [(1, 2, 3, END), (1, 2, END), (4, END), (1, 5, 6, 7, END)]
    own = titles(model, answers, without=[2])
    for item, answer in enumerate(answers):
        assert own.logp(item) == pytest.approx(prefix_logp(model, answer), abs=1e-4)
