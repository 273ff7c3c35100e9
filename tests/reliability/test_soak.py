"""The soak's table, its JSON and its exit code; the parts are tested where they are."""

import json

from reliability import soak
from reliability.soak import Part


def test_a_lost_case_is_told_and_ends_with_an_error(monkeypatch, tmp_path, capsys):
    lost = "killed in sft, at 40%: metrics.json"
    parts = [Part("kills", 20, [lost]), Part("fuzz", facts={"not done": "no atheris"})]
    monkeypatch.setattr(soak, "soak", lambda *asked: parts)
    monkeypatch.setattr("sys.argv", ["reliability", "--minutes", "1", "--out", str(tmp_path / "a" / "soak.json")])
    monkeypatch.setenv("COLUMNS", "120")
    assert soak.main() == 1
    out = capsys.readouterr().out
    assert f"lost, kills: {lost}" in out
    assert "fuzz (no atheris)" in out
    assert " 19 " in out
    assert json.loads((tmp_path / "a" / "soak.json").read_text())["parts"][0]["lost"] == [lost]
    parts[0].lost.clear()
    assert soak.main() == 0
    assert "Nothing lost" in capsys.readouterr().out
