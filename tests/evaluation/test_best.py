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
    assert Best.from_json(found.to_json()) == found


def test_the_first_of_equals_is_taken():
    assert choose({"a": np.array([0.5]), "b": np.array([0.5])}).ranker == "a"


def test_it_is_said_and_asked_among_others():
    best = Best("a", "ndcg@10", {"a": 0.4, "b": 0.25, "c": 0.3}, {"a": 1000, "b": 1000, "c": 300})
    assert best.sentence == "Best on validation: a (NDCG@10 0.400 on 1,000 examples; c: 0.300 on 300 examples)"
    assert (best.among(["a", "c"]), best.among(["b", "c"]), best.among(["d"])) == ("a", "c", None)
