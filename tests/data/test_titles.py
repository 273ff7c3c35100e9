"""Titles without characters that act on a terminal or page."""

import polars as pl
import pytest

from prefrec.data import Catalogue
from prefrec.data.titles import normal_title, safe_title


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("\x1b[31mRed\x1b[0m", "[31mRed[0m"),
        ("Exe\u202efdp.Emma\u2066", "Exefdp.Emma"),
        ("Red\x00\x07\x9b\r Emma", "Red Emma"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),  # joiners belong to the writing
    ],
)
def test_titles_of_a_catalogue_cannot_act_on_a_terminal_or_page(raw, title):
    assert safe_title(raw) == title
    assert Catalogue(pl.DataFrame({"item_id": ["1"], "title": [raw]})).titles == {"1": title}
    assert normal_title(raw) == normal_title(title)
