"""Titles: articles, years, alternative titles, duplicates."""

from pathlib import Path

import polars as pl
import pytest

from prefrec.data import Catalogue
from prefrec.errors import DataError
from prefrec.intake.sources.base import clean_catalogue
from prefrec.intake.titles import id_order, movie_title, movie_titles, resolve_duplicates


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Shawshank Redemption, The (1994)", "The Shawshank Redemption", 1994),
        ("American in Paris, An (1951)", "An American in Paris", 1951),
        ("Enfer, L' (1994)", "L'Enfer", 1994),
        ("Misérables, Les (1995)", "Les Misérables", 1995),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly", 1966),
        ("Big Blue, The (Grand bleu, Le) (1988)", "The Big Blue (Le Grand bleu)", 1988),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)", 1995),
        ("Mrs. Brown (Her Majesty, Mrs. Brown) (1997)", "Mrs. Brown (Her Majesty, Mrs. Brown)", 1997),
        ("Vitelloni, I (a.k.a. Young, The) (1953)", "I Vitelloni (a.k.a. The Young)", 1953),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("I, Worst of All (Yo, la peor de todas) (1990)", "I, Worst of All (Yo, la peor de todas)", 1990),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Babylon 5", "Babylon 5", None),
    ],
)
def test_movie_title(raw, title, year):
    assert movie_title(raw) == (title, year)


def test_year_only_where_two_films_share_a_title():
    raw = {"1": "Sabrina (1995)", "2": "Sabrina (1954)", "3": "Heat (1995)"}
    assert movie_titles(raw)[0] == {"1": "Sabrina (1995)", "2": "Sabrina (1954)", "3": "Heat"}


def test_same_film_under_two_ids_is_merged_into_the_smaller():
    titles, kept_as = movie_titles({"10": "Chasing Amy (1997)", "9": "Chasing Amy (1997)", "11": "Heat (1995)"})
    assert (titles, kept_as) == ({"9": "Chasing Amy", "11": "Heat"}, {"10": "9", "9": "9", "11": "11"})


def test_id_order_is_by_value():
    assert sorted(["b", "10", "9", "a"], key=id_order) == ["9", "10", "a", "b"]


ITEMS = pl.DataFrame({"item_id": ["2", "10", "1", "3"], "title": ["Hope", "hope ", "Hope (2)", "Air"]})


def test_duplicates_are_refused_by_name():
    with pytest.raises(DataError, match=r"1 titles .* 'Hope' is the title of 2, 10.*--duplicate-titles merge"):
        resolve_duplicates(ITEMS, "error")


def test_duplicates_merge_into_the_smallest_id():
    items, renamed, notes = resolve_duplicates(ITEMS, "merge")
    assert (items["item_id"].to_list(), renamed) == (["2", "1", "3"], {"10": "2"})
    assert notes == ["1 items with the title of another item were merged into it"]


def test_duplicates_number_without_taking_a_title_that_exists():
    items, renamed, _ = resolve_duplicates(ITEMS, "number")
    assert (items["title"].to_list(), renamed) == (["Hope", "Hope (3)", "Hope (2)", "Air"], {})


def _one_item(title: str) -> pl.DataFrame:
    return pl.DataFrame({"item_id": ["1"], "title": [title]})


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("\u202a Foo\u202c", "Foo"),
        ("\x00 Bar", "Bar"),
        ("Foo \u2066 bar \u2069", "Foo bar"),
        ("Two\nlines\x85end\x1cnow", "Two lines end now"),
    ],
)
def test_no_spaces_are_left_where_unsafe_characters_were(given, title):
    frame = _one_item(given)
    assert clean_catalogue(frame, Path("items.csv"))["title"].to_list() == [title]
    assert Catalogue(frame).titles == {"1": title}
    assert Catalogue(frame.with_columns(title=pl.lit("a  b "))).titles == {"1": "a  b "}  # nothing unsafe, as it is


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("AT&amp;T &lt;b&gt; &#8217;", "AT&T <b> ’"),
        ("A&amp;lt;B", "A&lt;B"),
        ("&notanentity; &copyright; &copy 2", "&notanentity; &copyright; &copy 2"),
        ("R&D; &eacute; &#x41; &nosuch;", "R&D; é A &nosuch;"),
    ],
)
def test_exact_html_entities_are_decoded_once(given, title):
    assert clean_catalogue(_one_item(given), Path("items.csv"))["title"].to_list() == [title]


@pytest.mark.parametrize("other", ["Cafe\u0301", "\uff23afé", "CAFÉ  "])
def test_titles_that_look_alike_are_one(other):
    items = pl.DataFrame({"item_id": ["1", "2"], "title": ["Café", other]})
    assert resolve_duplicates(items, "merge")[1] == {"2": "1"}
