"""Means over seeds against the functions for one ranker."""

import math

import numpy as np
import pytest

from prefrec.evaluation import PairedDifference, mean_interval, paired_difference
from prefrec_lab.study_tools.measure import holm, measure

USERS = [f"u{i // 2}" for i in range(60)]


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {name: {q: rng.random((3, 60)) for q in ("hr@1", "mrr")} for name in ("a", "b", "c")}


def test_intervals_are_those_of_the_mean_over_seeds(values):
    found = measure(values, USERS, baseline="b")
    assert (found.n, found.users, found.baseline) == (60, 30, "b")
    for name, of in values.items():
        for quantity, v in of.items():
            want = mean_interval(v.mean(axis=0), USERS)
            assert found.intervals[name][quantity].to_json() == pytest.approx(want.to_json())
            assert found.by_seed[name][quantity] == pytest.approx([v[s].mean() for s in range(3)])


def test_differences_are_paired(values):
    found = measure(values, USERS, baseline="b")
    assert list(found.differences) == ["a", "c"]
    for name in ("a", "c"):
        want = paired_difference(values[name]["mrr"].mean(axis=0), values["b"]["mrr"].mean(axis=0), USERS)
        got = found.differences[name]["mrr"]
        assert (got.mean, got.low, got.high) == pytest.approx((want.mean, want.low, want.high))
        assert got.p_value == want.p_value


def test_holm_equals_its_definition():
    """Step down: the i-th smallest p is compared with 0.05 / (m − i), until the first that is above."""
    p = {"a": 0.04, "b": 0.01, "c": 0.2, "d": 0.015, "one user": math.nan}
    corrected = holm({n: PairedDifference(0, 0, 0, 1, 1, p_value=v) for n, v in p.items()})
    assert corrected == pytest.approx({"b": 0.05, "d": 0.06, "a": 0.12, "c": 0.4, "one user": 1})
