"""The soak's table, its JSON and its exit code; the parts are tested where they are."""

import json
from types import SimpleNamespace

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


class Failures(BaseExceptionGroup):
    """As schemathesis raises them."""


def test_a_part_that_raises_does_not_end_the_others(monkeypatch, tmp_path):
    def fail(*asked, **named):
        raise Failures("no good answer", [ValueError("a 5xx")])

    monkeypatch.setattr(soak, "make_recipe", lambda folder: folder)
    monkeypatch.setattr(soak, "make_place", lambda folder: SimpleNamespace(app=None))
    monkeypatch.setattr(soak, "ask", fail)
    monkeypatch.setattr(soak.parts, "threads", fail)
    monkeypatch.setattr(soak.parts, "configs", lambda part, *asked: None)
    threads, configs, requests = soak.soak(0.01, tmp_path, 0, ["threads", "configs", "requests"])
    assert [line[:40] for line in threads.lost] == ["the part ended with Failures: no good an"]
    assert configs.lost == []
    assert [line.partition(": Failures")[0] for line in requests.lost] == [*soak.PATHS]
