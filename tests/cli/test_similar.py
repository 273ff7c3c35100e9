"""`prefrec also-bought` and `similar`: the same items as in Python, under rules."""

import json

import pytest

from command import refused, succeed
from prefrec.recommender import Recommender


@pytest.mark.parametrize(
    ("verb", "ranker", "by"),
    [
        ("also-bought", "EASE", "EASE"),
        ("also-bought", "fused", "item-kNN"),
        ("similar", "EASE", "title TF-IDF"),
        ("similar", "fused", "title TF-IDF"),
    ],
)
def test_related_items_are_those_of_python(run_with_rankers, verb, ranker, by):
    asked = (verb, run_with_rankers, "red emma", "--k", 4, "--ranker", ranker, "--deny", "i3")
    answer = json.loads(succeed(*asked, "--json"))
    rec = Recommender.from_run(run_with_rankers, ranker)
    want = (rec.similar if verb == "similar" else rec.also_bought)("i2", 4, deny=["i3"])
    assert answer["by"] == want.by == by
    assert answer["items"] == want.frame().to_dicts()
    assert len(want) == 4
    last = want[3].item_id
    first = json.loads(succeed(*asked, "--boost", f"item_id={last}=4", "--json"))["items"][0]
    assert first == want.frame().to_dicts()[3] | {"rank": 1}
    assert not {"i2", "i3"} & {row.item_id for row in want}
    printed = succeed(*asked)
    assert printed.startswith(f"by {want.by}\n")
    assert all(row.title in printed for row in want)


@pytest.mark.parametrize("verb", ["also-bought", "similar"])
@pytest.mark.parametrize("name", ["Nothing", "-30-"])
def test_an_unknown_item_is_named(run_with_rankers, verb, name):
    told = f"no item with title or id {name!r}"
    assert told in refused(verb, run_with_rankers, name, "--k", 4)
