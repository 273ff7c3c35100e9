"""Files of results: what is written is read back."""

import json

from prefrec_lab.results import RESULTS, save


def test_saved_results_are_read_back_with_a_row_on_a_line(tmp_path):
    fields = json.loads((RESULTS / "52-head-alignment.json").read_text(encoding="utf-8"))
    fields["tables"][0]["rows"][0][0] = 'a "quoted" \\ name, [x]'
    save(fields, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == fields
    assert max(text.count("\n"), 1) < 300
