"""Hostile configurations, in a short form; and that readers and limits can lose a case."""

import time

import pytest

from prefrec.errors import DataError
from reliability.children import call
from reliability.configs import try_configs
from reliability.limits import Hung, within
from reliability.readers import REFUSED, _same, answers


def test_configurations_are_read_or_refused(tmp_path):
    tried, wrong, refused = call(try_configs, tmp_path / "configs", 0, 3.0)
    assert wrong == []
    assert 0 < refused <= tried


def test_what_hangs_is_ended_and_is_no_refusal(tmp_path):
    with pytest.raises(Hung, match=r"longer than 0\.05 s"), within(0.05):
        time.sleep(60)

    def refuse(folder):
        raise DataError("damaged")

    def fail(folder):
        raise KeyError("files")

    told = answers({"refuse": refuse, "fail": fail, "say": lambda folder: folder.name}, tmp_path / "x")
    assert told == {"refuse": REFUSED, "fail": "KeyError escaped: 'files'", "say": "x"}


@pytest.mark.parametrize(
    ("told", "same"),
    [([REFUSED, 2], True), ([REFUSED, 3], False), ([1, 3], False), ("KeyError escaped: 'files'", False)],
)
def test_other_answers_are_lost(told, same):
    assert _same(told, [1, 2]) is same
