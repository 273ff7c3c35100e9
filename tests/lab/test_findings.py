"""The one rule of all trials: its four words, with each of both margins."""

import numpy as np
import pytest

from prefrec.evaluation.intervals import holm, paired_difference
from prefrec_lab import findings
from prefrec_lab.findings import Band, Share, judge
from prefrec_lab.wild import equivalence, wild_test

RNG = np.random.default_rng(0)
USERS, ITEMS = [f"u{n}" for n in range(300)], [f"i{n % 60}" for n in range(300)]
BASE = np.tile(RNG.uniform(0.4, 0.6, 300), (3, 1))


def difference(gain: float, noise: float) -> findings.Tested:
    """A difference of `gain` on 300 rows of 60 targets, with three seeds."""
    return findings.Tested(f"{gain}", BASE + gain + noise * RNG.normal(size=(3, 300)), BASE, USERS, ITEMS)


FAMILY = [difference(0.1, 0.01), difference(-0.1, 0.01), difference(0.0, 0.01), difference(0.0, 0.5)]


@pytest.mark.parametrize("margin", [Share(0.03), Band(0.01)])
def test_the_rule_has_four_words(margin):
    found = judge(FAMILY, level=0.05, margin=margin, draws=499)
    assert [one.word for one in found] == ["above", "below", "equivalent", "open"]


def test_a_family_is_corrected_together_and_each_difference_is_tested_alone():
    found = judge(FAMILY, level=0.05, margin=Share(0.03), draws=499, seed=3)
    settings = {"draws": 499, "seed": 3}
    p = [wild_test(t.first - t.second, USERS, ITEMS, **settings).p_value for t in FAMILY]
    same = [equivalence(t.first - t.second, t.second, USERS, ITEMS, margin=0.03, **settings) for t in FAMILY]
    gaps = [paired_difference(t.first.mean(axis=0), t.second.mean(axis=0), USERS, ITEMS) for t in FAMILY]
    assert [one.p for one in found] == p
    assert [one.adjusted for one in found] == holm(p)
    assert [one.adjusted_equivalent for one in found] == holm(same)
    assert [one.difference for one in found] == gaps


def test_a_wider_margin_turns_open_into_equivalent_and_changes_nothing_else():
    narrow, wide = (judge(FAMILY, level=0.05, margin=Band(width), draws=499) for width in (1e-6, 1.0))
    assert [one.word for one in narrow] == ["above", "below", "open", "open"]
    assert [one.word for one in wide] == ["above", "below", "equivalent", "equivalent"]
    assert [one.p for one in narrow] == [one.p for one in wide]
    assert all(one.adjusted_equivalent is None for one in wide)
