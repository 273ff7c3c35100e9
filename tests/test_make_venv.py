"""`scripts/make_venv.sh`: which Python `make` takes, and what it says where none will do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_venv.sh"
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")


def _python(folder: Path, name: str, version: str, *, is_new: bool = True, has_venv: bool = True) -> None:
    """Write a command that answers as a Python does."""
    cases = (f"*version_info*) exit {int(not is_new)}", f"*ensurepip*) exit {int(not has_venv)}")
    cases += ('"-m venv "*) : > "$3"', f"--version) echo Python {version}", f"*) echo {version}")
    (folder / name).write_text(f'#!/bin/sh\ncase "$*" in\n{" ;; ".join(cases)} ;;\nesac\n')
    (folder / name).chmod(0o755)


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("sh") or "sh", str(SCRIPT), str(folder / "made"), *arguments]
    environment = {**os.environ, "PATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_newest_python_is_taken(tmp_path: Path) -> None:
    _python(tmp_path, "python3", "3.14.0")
    assert "python3 (3.14.0)" in _make(tmp_path).stdout  # there is no other
    (tmp_path / "made").unlink()
    for name, version in (("python3.11", "3.11.9"), ("python3.13", "3.13.5")):
        _python(tmp_path, name, version)
    done = _make(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"1/4 {tmp_path}/made with {tmp_path}/python3.13 (3.13.5)\n"
    assert (tmp_path / "made").exists()
    assert "python3.11 (3.11.9)" in _make(tmp_path, "python3.11").stdout


def test_what_was_found_is_named(tmp_path: Path) -> None:
    assert "Python 3.11 or newer is needed. Found: no Python." in _make(tmp_path).stderr
    _python(tmp_path, "python3", "3.9.1", is_new=False)
    done = _make(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Found: {tmp_path}/python3 (Python 3.9.1)." in done.stderr


def test_the_package_of_a_missing_venv_is_named(tmp_path: Path) -> None:
    _python(tmp_path, "python3.12", "3.12.3", has_venv=False)
    done = _make(tmp_path)
    assert done.returncode == 1
    assert "has no module venv: apt install python3.12-venv (Debian, Ubuntu)" in done.stderr
