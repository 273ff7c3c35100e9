"""The page of a study in a real browser: names and sentences that are markup stay text."""

import polars as pl
import pytest

from hostile_pages import TEXTS, needs_browser, text_of_unbroken
from prefrec.pipeline.opened import open_run
from prefrec.report.tables import Cell, Grid
from prefrec_lab.study_tools.study import Outcome, Study, Table
from prefrec_lab.study_tools.write import PAGE, write_study
from served_run import write_run


@needs_browser
def test_nothing_of_the_data_runs(tmp_path, bpe_tokenizer):
    pytest.importorskip("playwright")
    run = open_run(write_run(tmp_path, bpe_tokenizer))
    frame = pl.DataFrame({"ranker": TEXTS, "hr@1": [0.5] * len(TEXTS)})
    grid = Grid(TEXTS, [(name, [Cell(text) for text in TEXTS], "") for name in TEXTS])
    table = Table("table", TEXTS[0], TEXTS[1], grid, frame, note=TEXTS[1])
    outcome = Outcome(tables=[table], drawings=[], facts=TEXTS, n=1, users=1, notes=TEXTS)
    write_study(Study(TEXTS[2], TEXTS[3], TEXTS[4], vary=None, analyse=None), [run], outcome, tmp_path / "study")
    text = text_of_unbroken(tmp_path / "study" / PAGE)
    assert all(text.count(hostile) >= 3 for hostile in TEXTS)
