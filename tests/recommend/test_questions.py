"""Rules of recommendations, and their answers by any ranker, against plain loops."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue
from prefrec.errors import DataError
from prefrec.recommend.questions import Selection, answer_all
from prefrec.recommend.rules import Rules

GENRES = ["Comedy", "Drama", None, "Comedy"] * 3
ITEMS = pl.DataFrame(
    [(f"i{n}", f"Title {n}", genre, 1980.0 + 2 * n, ["a"]) for n, genre in enumerate(GENRES)],
    schema=["item_id", "title", "genre", "year", "tags"],
    orient="row",
)
CATALOGUE = Catalogue(ITEMS)


class ByNumber:
    """Scores items by the number in their id, modulo 7, and notes what it was asked."""

    name = "by number"

    def __init__(self):
        self.asked = []

    def score(self, examples):
        self.asked += examples
        rows = [[int(i[1:]) % 7 for i in e.candidates] for e in examples]
        width = max(map(len, rows))
        return np.array([row + [-np.inf] * (width - len(row)) for row in rows], float)


def slow(rules, history, seen, k):
    """The best ids, by a loop over all items."""
    kept, counts = [], Counter()
    for row in sorted(ITEMS.iter_rows(named=True), key=lambda row: -(int(row["item_id"][1:]) % 7)):
        item, group = row["item_id"], row.get(rules.get("per"))
        if item in seen and rules.get("exclude_seen", True):
            continue
        if item not in rules.get("allow", ITEMS["item_id"]) or item in rules.get("deny", []):
            continue
        if "where" in rules and not (row["genre"] == "Comedy" and row["year"] > 1985):
            continue
        if group is not None and counts[group] >= rules["at_most"]:
            continue
        counts[group] += 1
        kept.append(item)
    return kept[:k]


@given(
    seen=st.sets(st.sampled_from(ITEMS["item_id"].to_list())),
    k=st.integers(1, 13),
    rules=st.fixed_dictionaries(
        {},
        optional={
            "exclude_seen": st.booleans(),
            "allow": st.just(["i0", "i3", "i4", "i6", "i11", "gone"]),
            "deny": st.just(["i6", "gone"]),
            "where": st.just("genre = 'Comedy' and year > 1985"),
            "at_most": st.integers(1, 2),
        },
    ),
)
def test_answers_equal_a_loop_over_all_items(seen, k, rules):
    rules |= {"per": "genre"} if "at_most" in rules else {}
    selection = Selection(CATALOGUE, Rules(**rules))
    questions = [selection.question(["i1"], seen, k), selection.question([], (), k)]
    answers = answer_all(ByNumber(), questions, CATALOGUE)
    assert [a.item_ids for a in answers] == [slow(rules, ["i1"], seen, k), slow(rules, [], set(), k)]
    for answer in answers:
        assert answer.logps.tolist() == [int(i[1:]) % 7 for i in answer.item_ids]


def test_a_ranker_is_asked_once_about_what_may_be_recommended():
    ranker, selection = ByNumber(), Selection(CATALOGUE, Rules(deny=["i5"]))
    asked = [selection.question(["i1"], ["i1"], 3), selection.question([], ITEMS["item_id"].to_list(), 3)]
    first, second = answer_all(ranker, asked, CATALOGUE)
    assert [(e.user_id, e.history, len(e.candidates)) for e in ranker.asked] == [("-", ("i1",), 10)]
    assert len(first.item_ids) == 3
    assert (second.item_ids, second.exact, second.method) == ([], True, "exact")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"where": 'genre = "Comedy"'},
            'unable to find column "Comedy".*item_id, title, genre, year, tags; put text',
        ),
        ({"where": "genre and"}, "unable to parse"),
        ({"where": "genre"}, "must be of type `Boolean`"),
        ({"where": "year > 3000"}, "exclude every item of the catalogue"),
        ({"per": "brand", "at_most": 1}, "per 'brand': the catalogue has no such column"),
        ({"per": "tags", "at_most": 1}, "per 'tags': the catalogue has no such column of single values"),
    ],
)
def test_rules_that_do_not_fit(rules, message):
    with pytest.raises(DataError, match=message):
        Selection(CATALOGUE, Rules(**rules))
