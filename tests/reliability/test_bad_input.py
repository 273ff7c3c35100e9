"""Every malformed input of the corpus gets the message that says where it is wrong and what to do."""

from collections import Counter
from pathlib import Path

import pytest

from reliability.corpus import CASES, Case, Place, make_place, verdict


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("corpus"))


def test_the_corpus_is_as_large_as_promised():
    assert len(CASES) >= 150
    assert not [name for name, count in Counter(c.name for c in CASES).items() if count > 1]
    assert all(c.message for c in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_message_names_the_place_and_the_way_out(place, tmp_path, case):
    assert verdict(case, place, tmp_path / "case") is None


def test_a_case_can_be_lost(place, tmp_path):
    def broken(place: Place, folder: Path) -> str:
        raise KeyError("title")

    fine = Case("x", "line 1", lambda place, folder: "all is well")
    assert verdict(fine, place, tmp_path) == "expected 'line 1', was told 'all is well'"
    assert verdict(Case("x", "line 1", broken), place, tmp_path) == "KeyError escaped: 'title'"
