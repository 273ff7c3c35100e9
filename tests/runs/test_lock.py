"""One run per folder, until its process ends."""

import json
import os
import subprocess
import sys

import pytest

from command import prefrec
from prefrec.errors import ConfigError
from prefrec.runs.lock import HOLDER, run_lock
from tiny_run import write_recipe

HELD = """
import sys
from pathlib import Path
from prefrec.runs.lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_is_at_work(other, tmp_path):
    with pytest.raises(
        ConfigError, match=rf"another run \(process {other.pid}, host .*, since 2.*\) works here; wait"
    ):
        run_lock(tmp_path).__enter__()
    recipe = write_recipe(tmp_path, {"name": "second"})
    before = recipe.read_text()
    done = prefrec("run", recipe, "--out", tmp_path, "--set", "name=third")
    assert (done.code, recipe.read_text()) == (1, before)
    assert f"another run (process {other.pid}" in done.err


def test_the_lock_of_a_process_that_died_does_not_count(other, tmp_path):
    other.kill()
    other.wait()
    assert json.loads((tmp_path / HOLDER).read_text())["process"] == other.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_damaged_note_of_the_holder_hides_nothing(tmp_path, content):
    with run_lock(tmp_path):
        (tmp_path / HOLDER).write_text(content)
        with pytest.raises(ConfigError, match=r"another run \(another process\) works here"):
            run_lock(tmp_path).__enter__()
    with run_lock(tmp_path):
        pass
