"""The soak's table, its JSON and its exit code; the parts are tested where they are."""

from __future__ import annotations

import json

import pytest

from reliability import soak
from reliability.soak import Part


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command with these parts; its exit code, its output and its JSON."""

    def carry_out(*parts):
        monkeypatch.setattr(soak, "soak", lambda *asked: list(parts))
        monkeypatch.setattr("sys.argv", ["reliability", "--minutes", "1", "--out", str(tmp_path / "a" / "soak.json")])
        monkeypatch.setenv("COLUMNS", "120")
        code = soak.main()
        return code, capsys.readouterr().out, json.loads((tmp_path / "a" / "soak.json").read_text())

    return carry_out


def test_nothing_lost(run):
    skipped = Part("fuzz", facts={"not done": "no atheris"})
    code, out, told = run(Part("kills", 20, seconds=9.0), skipped)
    assert code == 0
    (line,) = (line for line in out.splitlines() if "kills" in line)
    assert line.replace("│", " ").split() == ["kills", "20", "20", "0", "9"]
    assert "fuzz (no atheris)" in out
    assert "Nothing lost" in out
    assert told["parts"][0] == {"name": "kills", "tried": 20, "lost": [], "missed": 0, "facts": {}, "seconds": 9}


def test_a_lost_case_is_told_and_ends_with_an_error(run):
    code, out, told = run(Part("kills", 20, ["killed in sft, at 40%: metrics.json"]))
    assert code == 1
    assert "lost, kills: killed in sft, at 40%: metrics.json" in out
    assert " 19 " in out
    assert "1 lost" in out
    assert "Nothing lost" not in out
    assert told["parts"][0]["lost"] == ["killed in sft, at 40%: metrics.json"]
