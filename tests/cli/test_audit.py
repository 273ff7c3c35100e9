"""`prefrec audit` on a folder: table, JSON, exit codes."""

import json
from dataclasses import replace

import pytest

from clean_lists import made_up
from command import prefrec, succeed
from prefrec.data import write_prepared


def test_clean_lists_pass_strict(tmp_path):
    write_prepared(made_up(0), tmp_path)
    succeed("audit", tmp_path, "--strict")


@pytest.mark.parametrize("run", [True, False])
def test_leaks_are_shown_and_strict_fails(tmp_path, run):
    data = made_up(0)
    train, test = ([replace(e, target=e.candidates[-1]) for e in rows] for rows in (data.train, data.test))
    write_prepared(replace(data, train=train, test=test), tmp_path / "data" if run else tmp_path)
    shown = succeed("audit", tmp_path)
    assert [line for line in shown.splitlines() if "target position" in line and line.rstrip().endswith("leak")]
    assert "Audit: " in shown
    assert " in 40 candidate sets" in shown
    assert prefrec("audit", tmp_path, "--strict").code == 1
    assert json.loads(succeed("audit", tmp_path, "--json"))["rows"]


def test_strict_fails_where_there_is_nothing_to_learn_from(tmp_path):
    write_prepared(replace(made_up(0), train=[]), tmp_path)
    done = prefrec("audit", tmp_path, "--strict")
    assert done.code == 1
    assert "Audit: incomplete for 40 candidate sets. Skipped: target position" in " ".join(done.out.split())
