"""The soak's table, its JSON and its exit code; the parts are tested where they are."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from reliability import crashes, soak
from reliability.crashes import Crash
from reliability.fuzzing import Fuzzed
from reliability.kills import Killed
from reliability.parsers import PARSERS
from reliability.soak import KILLS, NAMES, Clock, Fuzzing, Part
from reliability.whole_runs import END, PARTS


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


def test_time_that_is_used_up_is_none():
    assert Clock(0.0).left == 0


def test_kills_tell_the_parts_that_they_hit_and_none_after_the_end_is_survived(run, monkeypatch, tmp_path):
    stages = ["prepare", "sft", "sft", "evaluate", END, END]
    killed = [Killed(0.5, stage, ["metrics.json"] * (n == 5), 1.0) for n, stage in enumerate(stages)]
    monkeypatch.setattr(soak, "kill_runs", lambda *asked: iter(killed))
    part = Part("kills")
    soak._kills(part, tmp_path, tmp_path, 0, until=float("inf"))
    assert part.facts == {"hit": {"prepare": 1, "sft": 2, "align/s-dpo": 0, "evaluate": 1}, "planned": KILLS}
    code, out, told = run(part)
    assert code == 1
    (line,) = (line for line in out.splitlines() if "kills (" in line)
    name, *numbers = line.strip("│ ").split("│")
    assert name.strip() == "kills (4 hit: prepare 1, sft 2, align/s-dpo 0, evaluate 1; 1 proved nothing)"
    assert [int(n) for n in numbers[:3]] == [6, 4, 1]
    assert (told["parts"][0]["missed"], list(told["parts"][0]["facts"]["hit"])) == (1, list(PARTS))


def test_crashes_tell_how_many_points_there_are_and_where_one_was_lost(run, monkeypatch, tmp_path):
    tried = [
        Crash(7, 9, "write data/train.parquet", "prepare", []),
        Crash(3, 9, "rename log.json", "sft", ["weights"]),
    ]
    monkeypatch.setattr(crashes, "why_not", lambda: None)
    monkeypatch.setattr(crashes, "crash_runs", lambda *asked: (c for c in tried))
    part = Part("crashes")
    soak._crashes(part, tmp_path, tmp_path, 0, until=float("inf"))
    code, out, told = run(part)
    assert code == 1
    assert "crashes (of 9; 2 hit: prepare 1, sft 1, align/s-dpo 0, evaluate 0, the end 0)" in out
    assert "after change 3, rename log.json: weights" in out
    assert told["parts"][0]["facts"]["changes"] == {"write": 1, "rename": 1}
    cut = Part("crashes")
    soak._crashes(cut, tmp_path, tmp_path, 0, until=0)
    assert cut.tried == 1


@pytest.fixture
def fuzzed(monkeypatch):
    """What the fuzzer was asked to do: names and seconds."""
    asked = []

    def fuzz(name, folder, seconds, seed):
        asked.append((name, seconds))
        return Fuzzed(100, "")

    monkeypatch.setattr(soak, "fuzz", fuzz)
    monkeypatch.setattr(soak.importlib.util, "find_spec", lambda name: object())
    return asked


def _fuzz_part(tmp_path, left, **options):
    part = Part("fuzz")
    soak._fuzz(part, tmp_path, 0, SimpleNamespace(left=left), Fuzzing(**options))
    return part


def test_the_fuzzer_has_its_own_seconds_for_each_reader(fuzzed, tmp_path):
    part = _fuzz_part(tmp_path, 1, jobs=2, seconds=600)
    assert sorted(fuzzed) == sorted((name, 600) for name in PARSERS)
    assert part.tried == 100 * len(PARSERS)
    assert part.facts["seconds each"] == 600


def test_readers_share_what_time_is_left(fuzzed, tmp_path):
    _fuzz_part(tmp_path, 24 * 60, jobs=2)
    assert {seconds for _, seconds in fuzzed} == {round(2 * 24 * 60 / len(PARSERS)) - soak.START_S}
    fuzzed.clear()
    _fuzz_part(tmp_path, 100, jobs=2, readers=("recipe",))
    assert fuzzed == [("recipe", 100 - soak.START_S)]  # one job is all that there is to do
    fuzzed.clear()
    _fuzz_part(tmp_path, 0, jobs=2)
    _fuzz_part(tmp_path, 0, jobs=2, readers=("recipe",))
    assert fuzzed == [(soak.ALL, soak.SHORTEST_S), ("recipe", soak.SHORTEST_S)]


def _command(monkeypatch, tmp_path, *options):
    monkeypatch.setattr("sys.argv", ["reliability", "--out", str(tmp_path / "soak.json"), *options])
    return soak.main()


def test_the_fuzzer_alone(fuzzed, monkeypatch, tmp_path, capsys):
    options = (
        "--only",
        "fuzz",
        "--fuzz-seconds",
        "600",
        "--jobs",
        "2",
        "--readers",
        "recipe",
        "log as CSV",
        "recipe",
    )
    assert _command(monkeypatch, tmp_path, *options) == 0
    assert sorted(fuzzed) == [("log as CSV", 600), ("recipe", 600)]
    (part,) = json.loads((tmp_path / "soak.json").read_text())["parts"]
    assert (part["name"], part["facts"]["seconds each"]) == (NAMES["fuzz"], 600)
