"""The best ranker by hand, where slow ones have fewer rows."""

import numpy as np
import pytest

from prefrec.evaluation.best import Best, choose

NAN = np.nan


@pytest.mark.parametrize(
    ("slow", "best"),
    [
        # On its two rows `a`, the best of the others, has 0.2.
        ([NAN, NAN, 0.1, 0.25], "a"),
        ([NAN, NAN, 0.2, 0.3], "slow"),
    ],
)
def test_a_slow_ranker_is_compared_on_its_own_rows(slow, best):
    values = {"a": [0.9, 0.9, 0.1, 0.3], "b": [0.0, 0.0, 0.9, 0.9], "slow": slow}
    found = choose({name: np.array(own) for name, own in values.items()})
    assert (found.ranker, found.rows) == (best, {"a": 4, "b": 4, "slow": 2})
    assert found.values["a"] == pytest.approx(0.55)
    assert found.leads == pytest.approx({"a": 0, "b": -0.1, "slow": np.nanmean(slow) - 0.2})
    assert found.ranker == found.among(found.values)
    assert Best.from_json(found.to_json()) == found


def test_the_first_of_equals_is_taken():
    assert choose({"a": np.array([0.5]), "b": np.array([0.5])}).ranker == "a"


def test_it_is_said_and_asked_among_others():
    values, rows = {"a": 0.4, "b": 0.25, "c": 0.45}, {"a": 1000, "b": 1000, "c": 300}
    best = Best("a", "ndcg@10", values, rows, {"a": 0.0, "b": -0.15, "c": -0.01})
    assert best.sentence == (
        "a is the default: NDCG@10 0.400 in full ranking of 1,000 validation examples, +0.010 over c, the next on "
        "the 300 that both ranked"
    )
    assert (best.among(["a", "c"]), best.among(["b", "c"]), best.among(["d"])) == ("a", "c", None)
    alone = Best("a", "ndcg@10", {"a": 0.4}, {"a": 9}, {"a": 0.0}, {"LLaRA": "it ranks lists"})
    assert alone.sentence == (
        "a is the default: NDCG@10 0.400 in full ranking of 9 validation examples; LLaRA cannot be the default: it "
        "ranks lists"
    )


def test_the_default_of_equals_is_the_one_with_all_rows():
    found = choose({"slow": np.array([NAN, 0.5]), "a": np.array([0.5, 0.5])})
    assert found.ranker == found.among(["slow", "a"]) == "a"
