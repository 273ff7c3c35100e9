"""Items sampled from the softmax of a ranker, log-probabilities of answers, and rankers of folds."""

from collections import Counter

import numpy as np
import pytest

from prefrec.data import RankingExample
from prefrec.errors import ModelError
from prefrec.rankers.blend import FOLDS, user_folds
from prefrec.rankers.matrices import pad_scores
from prefrec.rankers.softmax import FoldRanker, answer_log_probs, softmax_sample
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


def test_log_probs_of_answers_are_those_of_the_softmax_over_all_items():
    rows = [RankingExample(f"u{i}", (IDS[0],), (IDS[3], IDS[1], IDS[2]), IDS[1]) for i in range(3)]
    whole = np.log(np.exp([*VALUES.values()]) / np.exp([*VALUES.values()]).sum())
    found = answer_log_probs(Fixed(), IDS, rows)
    np.testing.assert_allclose(found, [[whole[1], whole[3], whole[2]]] * 3)


def test_an_item_without_a_score_is_as_likely_as_the_least_likely_one():
    values = {i: v + 5 for i, v in VALUES.items()} | {IDS[-1]: -np.inf}
    (found,) = answer_log_probs(
        Fixed(values=values), IDS, [RankingExample("u", (), (IDS[1], IDS[-1], IDS[0]), IDS[1])]
    )
    assert found[1] == found[2] == pytest.approx(found[0] + values[IDS[0]] - values[IDS[1]])
    nothing = dict.fromkeys(IDS, -np.inf)
    (found,) = answer_log_probs(Fixed(values=nothing), IDS, [RankingExample("u", (), tuple(IDS[:2]), IDS[1])])
    assert found == pytest.approx([-np.log(len(IDS))] * 2)


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
