"""Titles drawn from a model: without replacement, in proportion to their probabilities."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from prefrec.lm.catalogue import trie_reader
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.search import _run, _Sampling, sample
from tiny import ANSWERS, PROMPT, tiny_llama

DRAWS = 4000
WITHIN = CatalogueSoftmax(ANSWERS)
LOGITS = torch.randn(len(WITHIN.trie), 16, generator=torch.Generator().manual_seed(0))


class Table:
    """A reader whose logits after each prefix stand in a table."""

    trie, within = WITHIN.trie, None

    def at_prompt(self):
        return self

    def next_logits(self, nodes: np.ndarray):
        yield LOGITS[torch.from_numpy(nodes)]


def probabilities() -> np.ndarray:
    """Of the answers, by a loop over the children of every prefix."""
    out = []
    for answer in ANSWERS:
        p, node = 1.0, 0
        for token in answer:
            _, children = WITHIN.trie.children_of([node])
            odds = LOGITS[node][torch.from_numpy(WITHIN.trie.tokens[children])].double().exp().numpy()
            at = WITHIN.trie.tokens[children].tolist().index(token)
            p *= odds[at] / odds.sum()
            node = int(children[at])
        out.append(p)
    return np.array(out)


P = probabilities()


def draws(k: int, without: tuple[int, ...] = (), width: int = 2) -> Counter:
    rng, table = np.random.default_rng(0), Table()
    runs = (_run(_Sampling(WITHIN.trie, k, without, rng), table, width, None) for _ in range(DRAWS))
    return Counter(tuple(run.items) for run in runs)


def fits(counts: Counter, want: dict) -> bool:
    """A χ² test at 0.1%; what is expected less than five times is taken together."""
    assert set(counts) <= set(want)
    rare = [key for key, p in want.items() if p * DRAWS < 5]
    often = [key for key in want if key not in rare]
    groups = [*([key] for key in often), *([rare] if rare else [])]
    got, expected = ([sum(of[key] for key in group) for group in groups] for of in (counts, want))
    return chisquare(got, [p * DRAWS for p in expected]).pvalue > 1e-3


def test_one_title_is_drawn_by_its_probability() -> None:
    assert P.sum() == pytest.approx(1)
    assert fits(draws(1), {(i,): P[i] for i in range(7)})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 32])
def test_two_titles_are_drawn_without_replacement(width: int) -> None:
    """P(i, then j) = p_i · p_j / (1 − p_i)."""
    want = {(i, j): P[i] * P[j] / (1 - P[i]) for i, j in permutations(range(7), 2)}
    assert fits(draws(2, width=width), want)


def test_titles_that_are_left_out_are_not_drawn() -> None:
    left = [i for i in range(7) if i not in (0, 3)]
    assert fits(draws(1, without=(0, 3)), {(i,): P[i] / P[left].sum() for i in left})


def test_no_more_than_there_are() -> None:
    rng = np.random.default_rng(1)
    drawn = sample(trie_reader(tiny_llama(), PROMPT, WITHIN.trie, "cached", WITHIN), 20, rng, without=[2])
    assert sorted(drawn) == [0, 1, 3, 4, 5, 6]
