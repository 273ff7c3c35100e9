"""Slopes against planted rewards, ranks of the optimum against its formula, and the whole study."""

import numpy as np
import polars as pl
import pytest

from prefrec_lab.studies.negatives_theory import optimum_ranks, reward_slopes

COUNTS = {"a": 0, "b": 3, "c": 11, "d": 200}


@pytest.fixture
def reference():
    rng = np.random.default_rng(0)
    lists = [list(rng.permutation(list("abcde"))[:4]) for _ in range(6)]
    scores = rng.normal(size=(6, 4)) * 2
    return pl.DataFrame({"candidates": lists, "target": [row[1] for row in lists], "scores": scores.tolist()})


@pytest.mark.parametrize("planted", [(1.0, 0.0), (1.0, -1.0), (0.0, 0.0), (0.2, 0.7)])
def test_planted_slopes_are_found(reference, planted):
    policy = []
    for row in reference.iter_rows(named=True):
        row_items = list(zip(row["candidates"], row["scores"], strict=True))
        rewards = [planted[0] * s + planted[1] * np.log(1 + COUNTS.get(i, 0)) + 5 for i, s in row_items]
        policy.append([s + r / 0.5 for s, r in zip(row["scores"], rewards, strict=True)])
    found = reward_slopes(reference, reference.with_columns(scores=pl.Series(policy)), 0.5, COUNTS)
    np.testing.assert_allclose(found["reference"], planted[0], atol=1e-9)
    np.testing.assert_allclose(found["popularity"], planted[1], atol=1e-9)


def test_ranks_of_the_optimum_one_by_one(reference):
    """π* ∝ π_ref · (π_ref / popularity)^(1/β)."""
    found, tied = optimum_ranks(reference, (1.0, -1.0), 0.5, COUNTS)
    for b, row in enumerate(reference.iter_rows(named=True)):
        told = zip(row["candidates"], row["scores"], strict=True)
        odds = {i: np.exp(s) * (np.exp(s) / (1 + COUNTS.get(i, 0))) ** 2 for i, s in told}
        assert (found[b], tied[b]) == (1 + sum(odds[i] > odds[row["target"]] for i in odds), 0)
