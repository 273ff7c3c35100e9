"""Items sampled from the softmax of a ranker, log-probabilities of answers, and rankers of folds."""

from collections import Counter

import numpy as np
import pytest

from prefrec.data import RankingExample
from prefrec.errors import ModelError
from prefrec.rankers.blend import FOLDS, user_folds
from prefrec.rankers.matrices import pad_scores
from prefrec.rankers.softmax import FoldRanker, softmax_sample
from tiny_lists import CATALOGUE

IDS = CATALOGUE.ids
VALUES = dict(zip(IDS, np.linspace(-1, 2, len(IDS)).tolist(), strict=True))


class Fixed:
    """The same scores for all examples, plus `shift` × the item's place in the catalogue."""

    name = "fixed"

    def __init__(self, shift=0.0, values=VALUES):
        self.shift, self.values = shift, values

    def score(self, examples):
        return pad_scores([[self.values[i] + self.shift * IDS.index(i) for i in e.candidates] for e in examples])


def _examples(n):
    return [RankingExample(f"u{i}", (IDS[0],), (IDS[1],), IDS[1]) for i in range(n)]


def _sample(ranker, examples, k, *, temperature=1.0, without=(), first=0):
    rngs = (np.random.default_rng((7, first + row)) for row in range(len(examples)))
    return softmax_sample(ranker, IDS, temperature, examples, k, rngs, ({*without} for _ in examples))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_items_are_drawn_by_the_softmax_of_their_scores(temperature):
    rows, out = 4000, IDS[2]
    drawn = Counter(i for (i,) in _sample(Fixed(), _examples(rows), 1, temperature=temperature, without=[out]))
    weights = {i: np.exp(s / temperature) for i, s in VALUES.items() if i != out}
    for item, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn[item] / rows - share) < 4 * np.sqrt(share * (1 - share) / rows)
    assert out not in drawn


def test_items_are_drawn_once_and_those_that_cannot_be_scored_never():
    values = VALUES | {IDS[0]: -np.inf}
    for items in _sample(Fixed(values=values), _examples(50), len(IDS), without=[IDS[1]]):
        assert sorted(items) == sorted(IDS[2:])  # fewer, because no more are left


def test_what_is_drawn_does_not_depend_on_other_examples():
    examples = _examples(12)
    together = _sample(Fixed(), examples, 2)
    assert together == [_sample(Fixed(), [e], 2, first=row)[0] for row, e in enumerate(examples)]


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ModelError, match="'fixed': 3 of 3 examples have NaN scores"):
        _sample(Fixed(np.nan), _examples(3), 1)


@pytest.mark.parametrize("score", [np.inf, 1e39])
def test_a_score_that_an_answer_cannot_hold_is_refused(score):
    with pytest.raises(ModelError, match=r"'fixed': 3 of 3 examples have scores above 3\.40282e\+38"):
        _sample(Fixed(values=dict.fromkeys(VALUES, score)), _examples(3), 1)


def test_an_example_is_scored_without_its_fold_and_each_fold_is_loaded_once():
    loaded = []

    def load(fold):
        loaded.append(fold)
        return Fixed(shift=10.0 * fold)

    examples = _examples(20)
    lists = [RankingExample(e.user_id, e.history, tuple(IDS[: 1 + n % 3]), IDS[0]) for n, e in enumerate(examples)]
    folds = user_folds(examples, FOLDS).tolist()
    assert set(folds) == {*range(FOLDS)}
    scores = FoldRanker("counts", load).score(lists)
    for row, e, fold in zip(scores, lists, folds, strict=True):
        assert row.tolist()[: len(e.candidates)] == Fixed(shift=10.0 * fold).score([e])[0].tolist()
        assert np.isneginf(row[len(e.candidates) :]).all()
    loaded.clear()
    _sample(FoldRanker("counts", load), examples, 1)
    assert loaded == [0, 1, 2, 3]
