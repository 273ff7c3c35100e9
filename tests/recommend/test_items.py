"""Names of items as clients write them."""

from time import process_time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz

from prefrec.data import Catalogue
from prefrec.errors import DataError
from prefrec.recommend import items
from prefrec.recommend.items import ItemIndex, UnknownItemsError, bare_title
from prefrec.recommend.rules import ById, Item

ROWS = {"1": "Heat", "2": "Alien", "3": "Aliens", "1984": "Emma", "5": "1984", "6": "The  Alien Thing", "7": "heat"}


def _index(ids, titles):
    return ItemIndex(Catalogue(pl.DataFrame({"item_id": list(ids), "title": list(titles)})))


@pytest.fixture(scope="module")
def index():
    return _index(ROWS, ROWS.values())


@pytest.mark.parametrize(
    ("name", "item_id"), [("  aLIEN ", "2"), ("the alien thing", "6"), ("3", "3"), ("1984", "5")]
)
def test_a_name_is_a_title_whatever_its_case_else_an_id(index, name, item_id):
    assert [i.item_id for i in index.resolve([name])] == [item_id]


def test_an_id_that_is_anothers_title_can_be_said(index):
    assert [i.item_id for i in index.resolve([ById(item_id="1984"), "1984", "Aliens"])] == ["1984", "5", "3"]
    with pytest.raises(UnknownItemsError):
        index.resolve([ById(item_id="Emma")])


def test_unknown_names_come_with_near_ones(index):
    told = r"no item with title or id 'Alein' among 7; similar: Alien \(id 2\)"
    with pytest.raises(UnknownItemsError, match=told) as e:
        index.resolve(["Emma", "Alein", "qqqqq"])
    assert "(and 1 more)" in str(e.value)
    assert str(e.value).count("similar") == 1  # of the first unknown name alone
    first, second = e.value.unknown
    assert first.near[0] == Item(item_id="2", title="Alien")
    assert (second.given, second.near) == ("qqqqq", [])


def test_one_unknown_name_without_similar_ones_is_told_alone(index):
    with pytest.raises(UnknownItemsError, match=r"no item with title or id 'qqqqq' among 7$"):
        index.resolve(["Emma", "qqqqq"])


def test_a_title_of_two_items_asks_for_the_id(index):
    with pytest.raises(UnknownItemsError, match="title of several items; give the id: Heat") as e:
        index.resolve(["HEAT"])
    assert [i.item_id for i in e.value.unknown[0].near] == ["1", "7"]


def test_near_matches_are_searched_for_a_few_names_only(index, monkeypatch):
    searched = []
    monkeypatch.setattr(index, "search", lambda text, limit: searched.append(text) or [])
    with pytest.raises(UnknownItemsError) as e:
        index.resolve([f"Alien {n}!" for n in range(40)])
    assert (len(e.value.unknown), len(searched)) == (40, 5)


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("al", ["Alien", "Aliens", "The  Alien Thing"]),  # begins; a word begins
        ("ALIENS", ["Aliens", "Alien"]),
        ("1984", ["Emma", "1984"]),  # the id, then the title
        (" ", ["Heat", "Alien"]),
    ],
)
def test_search(index, text, titles):
    assert [i.title for i in index.search(text, 10)][: len(titles)] == titles


def test_search_has_the_exact_title_first_then_whole_words():
    index = _index("abcde", ["Aliens", "My Alien", "Alien 3", "Alien", "Inalienable"])
    assert [i.title for i in index.search("alien", 5)] == ["Alien", "Alien 3", "Aliens", "My Alien", "Inalienable"]
    assert [i.title for i in index.search("alien", 1)] == ["Alien"]
    index = _index("abc", ["Inalienable", "My Aliens", "An Alien"])
    assert [i.title for i in index.search("alien", 3)] == ["An Alien", "My Aliens", "Inalienable"]


def test_a_title_that_holds_both_words_in_another_order_comes_before_similar_ones():
    index = _index("abc", ["Reloading the Matrix", "Matrix Reloader", "Reloaded, a long film about the Matrix"])
    assert [i.item_id for i in index.search("matrix reloaded", 2)] == ["c", "b"]


def test_similar_titles_come_by_similarity_wherever_they_stand(monkeypatch):
    """The least similar ones would be first by the alphabet; each is the first or the last of a block."""
    titles = ["Zebra Crossing", "Abra Crossword", "Quite Another", "Zebra Crossings", "Cebra Crosing", "Nothing"]
    monkeypatch.setattr(items, "BLOCK", 2)
    found = [i.title for i in _index("abcdef", titles).search("Zebra Crosing", 4)]
    ratios = {title: fuzz.WRatio("zebra crosing", title.lower()) for title in titles}
    assert found == sorted((t for t in titles if ratios[t] >= items.NEAR_ENOUGH), key=ratios.get, reverse=True)[:4]
    assert len(found) == 4


def test_as_many_similar_titles_as_are_wanted():
    index = _index("abcdefghi", [f"Zebra Crossing {n}" for n in range(8)] + ["Nothing"])
    assert len(index.search("Zebro Crosing", 7)) == 7


@pytest.mark.parametrize("title", ["The Ocean's Eleven!", "Ocean’s  eleven", "a océans - Eleven"])
def test_a_bare_title_has_words_alone(title):
    assert bare_title(title) == "oceans eleven"


def test_history_and_candidates_are_told_apart_and_no_candidate_is_named_twice(index):
    past, choices = index.resolve_lists(["Emma", "Alien", "Emma"], ["3", "2"])
    assert ([i.item_id for i in past], [i.item_id for i in choices]) == (["1984", "2", "1984"], ["3", "2"])
    many = _index(map(str, range(20_000)), map(str, range(20_000)))
    start = process_time()
    many.resolve_lists([], many.catalogue.ids)
    assert process_time() - start < 5  # a comparison of all pairs takes minutes
    with pytest.raises(DataError, match="'Alien' occurs twice among the candidates"):
        index.resolve_lists(["Emma"], ["Alien", "Aliens", "2"])


@given(text=st.text(max_size=20), limit=st.integers(1, 9))
def test_search_takes_any_text(index, text, limit):
    found = index.search(text, limit)
    assert len(found) <= limit
    assert len(set(found)) == len(found)
    assert all(ROWS[i.item_id] == i.title for i in found)


FILMS = [
    "Matrix, The (1999)", "Animatrix", "The Matrix Reloaded", "Dramatrixed", "Théâtre, Le", "Ocean's Eleven",
    "The The", "Mission: Impossible", "Anatrix", "!!!",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("A Matrix!", "Matrix, The (1999)"), ("1999 Matrix", "Matrix, The (1999)"), ("le theatre", "Théâtre, Le"),
        ("Reloaded Matrix", "The Matrix Reloaded"), ("Matirx Reloadd", "The Matrix Reloaded"),
        ("Oceans Eleven", "Ocean's Eleven"), ("Ocean’s Eleven", "Ocean's Eleven"), ("!!!", "!!!"),
    ],
)  # fmt: skip
def test_articles_punctuation_and_order_do_not_count_among_near_names(name, first):
    """Alike in the search of the page and API, and where a name is unknown (commands and Python, too)."""
    index = _index("abcdefghij", FILMS)
    assert index.search(name, 3)[0].title == first
    if name not in FILMS:
        with pytest.raises(UnknownItemsError) as e:
            index.resolve([name])
        assert e.value.unknown[0].near == index.search(name, 3)


def test_a_search_of_a_large_catalogue_sees_all_of_it():
    """It goes by blocks, so that other threads may run."""
    titles = [f"{n} a title of some length {n % 977}" for n in range(20_000)]
    index = _index(map(str, range(20_000)), titles)
    assert index.search("a title of some lenght 976", 1)[0].title.endswith("length 976")
