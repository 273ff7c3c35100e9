"""Start the fuzzer in a process of its own, and read what it says."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 240
"""Seconds that the process may take for its start and its last input."""


@dataclass(frozen=True)
class Fuzzed:
    """What a fuzzer found: the number of inputs, and its last words where it crashed (else nothing)."""

    inputs: int
    crash: str


def fuzz(folder: Path, seconds: int, seed: int = 1) -> Fuzzed:
    """Fuzz the parsers of `PARSERS`."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests / "support"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "reliability.fuzz", str(folder.absolute()), str(seconds), str(seed)]
    try:
        kept = {"capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run(command, env=environment, timeout=seconds + GRACE_S, **kept)
    except subprocess.TimeoutExpired:
        return Fuzzed(0, f"did not end {GRACE_S} seconds after its time")
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    words = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("#")][-40:]
    ended = [*words, f"exit code {done.returncode}"]
    return Fuzzed(int(found[1]) if found else 0, "\n".join(ended) if done.returncode else "")
