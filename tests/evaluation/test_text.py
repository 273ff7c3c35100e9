"""What counts as a valid answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation.text import judge_texts, normalise_title, valid_choice

TITLES = ["It Happened One Night", "It", "The Shawshank Redemption", "M*A*S*H", "Help!", "Café Society"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("It", 1),
        (" it \n", 1),
        ('"It".', 1),
        ("It Happened One Night", 0),
        ("it  happened\tone night", 0),
        ("“The Shawshank Redemption”", 2),
        ("The Shawshank Redemption.", 2),
        ("m*a*s*h", 3),
        ("Help!", 4),
        ("Cafe\u0301 Society", 5),
        ("ＩＴ", 1),
    ],
)
def test_whole_titles_are_found(text, index):
    assert valid_choice(text, TITLES) == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "It Happened",
        "It Happened One Night, because",
        "Help",
        "Happened",
        "The Godfather",
        "It\nIt",
        '""',
    ],
)
def test_parts_additions_and_strangers_are_invalid(text):
    assert valid_choice(text, TITLES) is None


def test_verbatim_comes_first_and_ambiguity_is_invalid():
    assert valid_choice("AIR", ["Air", "AIR", "air"]) == 1
    assert valid_choice("aIR", ["Air", "AIR", "air"]) is None
    assert valid_choice("Air", ["Air", "Air"]) is None


def test_titles_of_punctuation_only_survive():
    assert normalise_title("...") == "..."
    assert valid_choice("!!!", ["!!!", "?"]) == 0


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise_title(normalise_title(text)) == normalise_title(text)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.data())
def test_a_choice_is_a_candidate_of_the_same_name(titles, data):
    text = data.draw(st.sampled_from(titles))
    choice = valid_choice(text, titles)
    assert choice is None or normalise_title(titles[choice]) == normalise_title(text)


def test_judge_counts_invalid_as_a_miss():
    outcome = judge_texts(["It", "It Happened", "help!"], [TITLES] * 3, [1, 0, 2])
    assert outcome.choice.tolist() == [1, -1, 4]
    assert outcome.valid.tolist() == [1, 0, 1]
    assert outcome.hit.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="2 texts, 1 lists"):
        judge_texts(["a", "b"], [TITLES], [0])
