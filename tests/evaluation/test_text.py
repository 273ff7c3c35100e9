"""What counts as a valid answer."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import evaluate_predictions, judge_texts
from prefrec.evaluation.predictions import judge_substrings, prediction_frame
from prefrec.prompts.answers import normalise_title, valid_choice
from verdicts import NONE

TITLES = ["It Happened One Night", "It", "The Shawshank Redemption", "M*A*S*H", "Help!", "Café Society"]


WHOLE = [("It", 1), ('"It".', 1), ("It Happened One Night", 0), ("it  happened\tone night", 0), ("ＩＴ", 1)]
WHOLE += [("“The Shawshank Redemption”", 2), ("m*a*s*h", 3), ("Cafe\u0301 Society", 5)]


@pytest.mark.parametrize(("text", "index"), WHOLE)
def test_whole_titles_are_found(text, index):
    assert valid_choice(text, TITLES) == index


@pytest.mark.parametrize("text", ["", "It Happened", "It Happened One Night, because", "The Godfather", "It\nIt"])
def test_parts_additions_and_strangers_are_invalid(text):
    assert valid_choice(text, TITLES) is None


def test_verbatim_comes_first_and_ambiguity_is_invalid():
    assert valid_choice("AIR", ["Air", "AIR", "air"]) == 1
    assert valid_choice("aIR", ["Air", "AIR", "air"]) is None
    assert valid_choice("Air", ["Air", "Air"]) is None


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise_title(normalise_title(text)) == normalise_title(text)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.data())
def test_a_choice_is_a_candidate_of_the_same_name(titles, data):
    text = data.draw(st.sampled_from(titles))
    choice = valid_choice(text, titles)
    assert choice is None or normalise_title(titles[choice]) == normalise_title(text)


IDS = tuple(f"i{n}" for n in range(len(TITLES)))
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))


def test_judge_names_the_item_of_a_valid_text():
    examples = [RankingExample("u", (), IDS, "i1")] * 3
    assert judge_texts(["It", "It Happened", "help!"], examples, CATALOGUE) == ["i1", None, "i4"]
    with pytest.raises(ValueError, match="is longer than"):
        judge_texts(["a", "b"], examples, CATALOGUE)


def test_the_authors_judge_by_substrings():
    """Exactly one title must occur; then it may stand in any text, but a title within another one hides that."""
    texts = ["It", "It Happened One Night", "I say Help!", "help!", "Help! M*A*S*H", "", "Itinerary"]
    examples = [RankingExample("u", (), IDS, target) for target in ("i1", "i0", "i4", "i4", "i4", "i4", "i4")]
    examples.append(RankingExample("u", (), ("i0", "i2"), "i0"))  # without "It" in the list
    texts.append("It Happened One Night")
    ranks, judged = (np.ones(8, int), np.zeros(8, int)), judge_texts(texts, examples, CATALOGUE)
    frame = prediction_frame("lm", examples, np.zeros((8, 6)), ranks, texts, judged)
    found = judge_substrings(frame, CATALOGUE)
    assert found.to_list() == ["i1", None, "i4", None, None, None, "i1", "i0"]
    metrics = evaluate_predictions(frame.with_columns(substring=found), audit=NONE).metrics["lm"]
    assert [metrics[m].mean for m in ("substring_hr@1", "substring_valid_ratio")] == [3 / 8, 4 / 8]
    assert [metrics[m].mean for m in ("gen_hr@1", "valid_ratio")] == [4 / 8, 4 / 8]
    assert "substring_hr@1" not in evaluate_predictions(frame, audit=NONE).metrics["lm"]
