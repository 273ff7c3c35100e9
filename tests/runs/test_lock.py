"""One run per folder, until its process ends."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from command import prefrec, refused
from prefrec.errors import ConfigError
from prefrec.runs.lock import HOLDER, LOCK, in_use, is_used, reader_lock, run_lock, stage_lock
from tiny_run import write_recipe

HELD = """
import sys
from pathlib import Path
from prefrec.runs import lock

with getattr(lock, sys.argv[2])(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    with holding(tmp_path) as process:
        yield process


@contextmanager
def holding(folder, kind="run_lock"):
    command = [sys.executable, "-c", HELD, str(folder), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_is_at_work(other, tmp_path):
    told = rf"another command \(process {other.pid}, host .*, since 2.*\) is running here; wait"
    with pytest.raises(ConfigError, match=told):
        run_lock(tmp_path).__enter__()
    recipe = write_recipe(tmp_path, {"name": "second"})
    before = recipe.read_text()
    done = prefrec("run", recipe, "--out", tmp_path, "--set", "name=third")
    assert (done.code, recipe.read_text()) == (1, before)
    assert f"another command (process {other.pid}" in done.err


def test_the_lock_of_a_process_that_died_does_not_count(other, tmp_path):
    other.kill()
    other.wait()
    assert json.loads((tmp_path / HOLDER).read_text())["process"] == other.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


@pytest.mark.parametrize("years", [-20, -1, 1, 20])
def test_a_lock_does_not_age(other, tmp_path, monkeypatch, years):
    now = time.time()
    for name in (LOCK, HOLDER):
        os.utime(tmp_path / name, (now - 1e9, now - 1e9))
    monkeypatch.setattr(time, "time", lambda: now + years * 365 * 86_400)
    with pytest.raises(ConfigError, match=rf"another command \(process {other.pid}"):
        run_lock(tmp_path).__enter__()


def test_a_damaged_note_of_the_holder_hides_nothing(tmp_path):
    with run_lock(tmp_path):
        (tmp_path / HOLDER).write_text("{")
        with pytest.raises(ConfigError, match=r"another command \(another process\) is running here"):
            run_lock(tmp_path).__enter__()
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("command", ["report .", "export . --out out", "prepare data"])
def test_no_verb_works_in_the_folder_of_a_run_at_work(other, tmp_path, monkeypatch, command):
    write_recipe(tmp_path, {"name": "x"})
    monkeypatch.chdir(tmp_path)
    assert f"another command (process {other.pid}" in refused(*command.split()).replace("\n", " ")


@pytest.mark.parametrize("place", ["sft", "align/s-dpo"])
def test_no_run_works_around_a_stage_at_work(tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    told = rf"{place}: another command \(process {{}}, .*\) is running here"
    with holding(tmp_path / place, "stage_lock") as other, pytest.raises(ConfigError, match=told.format(other.pid)):
        run_lock(tmp_path).__enter__()
    with run_lock(tmp_path), pytest.raises(ConfigError, match="is running here"):
        stage_lock(tmp_path / place).__enter__()
    with stage_lock(tmp_path / "one"), stage_lock(tmp_path / "two"):
        pass  # stages outside of runs are made at the same time


def test_a_run_that_cannot_be_written_to_is_read_without_a_lock(tmp_path, monkeypatch):
    write_recipe(tmp_path, {"name": "x"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    with reader_lock(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_folder_in_use_is_seen_by_others(tmp_path):
    assert not is_used(tmp_path)
    with in_use(tmp_path), in_use(tmp_path):
        assert is_used(tmp_path)
    assert not is_used(tmp_path)
    assert is_used(tmp_path / "missing")
