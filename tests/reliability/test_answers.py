"""The parts of the soak about answers: the default in a short form, and that each part can lose a case."""

import random

import pytest

from prefrec.errors import DataError
from reliability import answers

ONE = [("a", 3.0), ("b", 2.0), ("c", 1.0)]


def test_every_door_has_the_default_of_the_run(whole):
    assert answers.wrong_default(whole[0]) == []


def test_another_default_is_lost(whole, monkeypatch):
    monkeypatch.setattr("prefrec.pipeline.opened.Run.default", lambda *asked: "popularity")
    assert len(answers.wrong_default(whole[0])) == 3


@pytest.mark.parametrize("ranker", ["popularity", "window co-occurrence", "sft"])
def test_batches_have_the_answers_of_their_histories(adapted_run, ranker):
    rec = answers.Recommender.from_run(adapted_run, ranker)
    assert answers.wrong_in_batch(rec, random.Random(1)) == []


def test_an_answer_of_another_history_is_lost(adapted_run, monkeypatch):
    rec = answers.Recommender.from_run(adapted_run, "popularity")
    monkeypatch.setattr(answers, "_of_user", lambda frame, user: [])
    assert len(answers.wrong_in_batch(rec, random.Random(1))) == 2


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ([("a", 3.0), ("b", 2.0), ("c", 1.0004)], True),
        ([("a", 3.0), ("b", 2.0), ("d", 1.0)], True),  # as good as the last one
        ([("b", 3.0), ("a", 2.0), ("c", 1.0)], False),
        ([("a", 3.0), ("b", 2.01), ("c", 1.0)], False),
        (ONE[:2], False),
    ],
)
def test_items_may_change_places_only_where_scores_are_close(other, alike):
    assert answers._alike(ONE, other, 1e-3) is alike


def test_a_replaced_run_answers_as_before_or_with_an_error():
    def refuse():
        raise DataError("another run")

    def fail():
        raise KeyError("i3")

    assert answers.wrong_after(refuse, ONE) == []
    assert answers.wrong_after(lambda: ONE, ONE) == []
    assert answers.wrong_after(lambda: ONE[:2], ONE) == ["an answer of neither the run that was opened, nor an error"]
    assert answers.wrong_after(fail, ONE) == ["KeyError escaped: 'i3'"]
