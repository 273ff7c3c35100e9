"""scripts/study_pages.py: a finished study as a page, with what was written by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from prefrec.pipeline.opened import open_run
from prefrec_lab.studies.measure import measure
from prefrec_lab.studies.plots import dots
from prefrec_lab.studies.study import Outcome, Study
from prefrec_lab.studies.tables import facts_of, results_table
from prefrec_lab.studies.write import UNAUDITED, write_study
from served_run import write_run

SCRIPT = Path(__file__).parents[3] / "scripts" / "study_pages.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("study_pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(tmp_path, bpe_tokenizer):
    """Folder of a study with two tables, of which the first has columns that a page leaves out."""
    run = open_run(write_run(tmp_path, bpe_tokenizer))
    rows = {m: np.random.default_rng(0).random((1, 9)) for m in ("hr@1", "hr@5", "ndcg@10")}
    values = {"sft": rows, "s-dpo": {m: v / 2 for m, v in rows.items()}}
    measured = measure(values, [f"u{i}" for i in range(9)], baseline="s-dpo")
    first = results_table(measured, settings={"s-dpo": {"N": 8, "seconds": 3.5}}, title="Losses")
    second = results_table(measured, name="more", title="More")
    drawing = dots(measured, "hr@1", ["sft"])
    outcome = Outcome([first, second], [drawing], facts_of(measured), measured.n, measured.users, ["A note."])
    write_study(
        Study("losses", "Which loss?", "the loss.", vary=None, analyse=None), [run], outcome, tmp_path / "study"
    )
    return tmp_path / "study"


def test_a_page_is_question_result_plots_and_one_table(script, finished, tmp_path):
    page = script.write_page(finished, tmp_path)
    text = page.read_text()
    begin = f"# losses\n\nWhich loss?\n\n{script.BEGIN}\n{script.MISSING}\n{script.END}\n\n{UNAUDITED}\n\n"
    assert text.startswith(
        begin + "![losses: hr-1](losses/hr-1.svg)\n\n## Losses\n\n| Variant | N | HR@1 | NDCG@10 |"
    )
    assert (tmp_path / "losses" / "hr-1.svg").read_text().startswith("<?xml")
    assert text.count("\n|---|") == 1
    assert text.splitlines()[-1].startswith("n = 9 rows of 9 users, ")
    assert "More" not in text
    assert "A note." not in text


def test_the_page_is_made_again_and_the_sentences_stay(script, finished, tmp_path):
    page = script.write_page(finished, tmp_path)
    page.write_text(written := page.read_text().replace(script.MISSING, "Nothing was found.\nTwice."))
    assert script.write_page(finished, tmp_path).read_text() == written
