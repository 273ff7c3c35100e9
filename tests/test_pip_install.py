"""`scripts/pip_install.sh`: a download that breaks off starts again, and any other error ends at once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "pip_install.sh"
BROKEN = "error: incomplete-download"
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")


def _command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


Done = subprocess.CompletedProcess[str]


def _install(folder: Path, *, failures: int, error: str = BROKEN) -> tuple[Done, list[str]]:
    """Install with a pip that fails so many times; return what the script printed, and what was called."""
    calls = folder / "calls"
    pip = [
        f'echo "$@" >> {calls}',
        f'[ "$(grep -c install {calls})" -gt {failures} ] && exit 0',
        f'echo "{error}" > "$4"',
        "exit 1",
    ]
    _command(folder / "venv/bin/python", "\n".join(pip))
    _command(folder / "sleep", f'echo "sleep $1" >> {calls}')
    command = [shutil.which("sh") or "sh", str(SCRIPT), str(folder / "venv"), "--quiet", "torch"]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done, calls.read_text().splitlines()


def test_a_download_that_breaks_off_starts_again(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, failures=2)
    pip = f"-m pip --log {tmp_path}/venv/pip.log install --quiet torch"
    assert (done.returncode, calls) == (0, [pip, "sleep 15", pip, "sleep 60", pip])
    assert done.stderr.splitlines()[0] == "A download broke off. It starts again in 15 seconds."
    assert not (tmp_path / "venv/pip.log").exists()


def test_the_third_failure_is_the_last(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, failures=3)
    assert (done.returncode, len(calls)) == (1, 5)
    assert f"{tmp_path}/venv/pip.log has the details" in done.stderr
    assert (tmp_path / "venv/pip.log").read_text() == f"{BROKEN}\n"


def test_another_error_is_not_tried_again(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, failures=3, error="No matching distribution found for torch")
    assert (done.returncode, len(calls)) == (1, 1)
    assert "Run the command again" in done.stderr
