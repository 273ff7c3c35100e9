"""scripts/study_pages.py: a finished study as a page, with what was written by hand."""

import importlib.util
from pathlib import Path

import pytest

from prefrec_lab.studies.carry_out import carry_out
from prefrec_lab.studies.cost import COST

SCRIPT = Path(__file__).parents[3] / "scripts" / "study_pages.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("study_pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_again_and_the_sentences_stay(script, base, place, tmp_path):
    carry_out(COST, base, [0], place)
    page = script.write_page(place / "cost", tmp_path)
    text = page.read_text()
    assert text.startswith("# cost\n\nWhat does each method cost")
    assert script.MISSING in text
    for plot in ("HR-1-time", "HR-1-memory"):
        assert f"(cost/{plot.lower()}.svg)" in text
        assert (tmp_path / "cost" / f"{plot.lower()}.svg").read_text().startswith("<?xml")
    assert "## Accuracy, seconds of training and memory" in text
    assert 0 < text.index("Audit: ") < text.index("|---|")  # the verdict stands above the table
    assert "| Model | peak GiB | CPU seconds in all | own CPU seconds | HR@1 |" in text
    assert text.count("\n|---|") == 1
    assert "\n\nn = " in text
    page.write_text(text.replace(script.MISSING, "Nothing was found.\nTwice."))
    again = script.write_page(place / "cost", tmp_path).read_text()
    assert "Nothing was found.\nTwice." in again
    assert again == page.read_text() == text.replace(script.MISSING, "Nothing was found.\nTwice.")


def test_a_page_of_another_name(script, base, place, tmp_path):
    carry_out(COST, base, [0], place)
    page = script.write_page(place / "cost", tmp_path, "cost-books")
    assert page == tmp_path / "cost-books.md"
    assert page.read_text().startswith("# cost-books\n\nWhat does each method cost")
    assert "(cost-books/hr-1-time.svg)" in page.read_text()
    assert (tmp_path / "cost-books" / "hr-1-time.svg").is_file()
