"""Files that tests write or change by hand, with their digests as a run would have left them, or damaged."""

import json
from pathlib import Path
from typing import Any

from prefrec.files import SEAL, digests, write_json
from prefrec.runs.results import METRICS, RESULTS
from prefrec.runs.stage import STAGE_FILE, read_state, seal


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle if not told where."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def seal_stage(folder: Path, **state: Any) -> None:
    """Make a folder that of a finished stage, which wrote what is in it."""
    known = {"key": "k"} | read_state(folder)
    write_json(folder / STAGE_FILE, known | {"finished": True} | state | {"files": seal(folder)})


def seal_results(run: Path) -> None:
    """Make what is there the result of an evaluation."""
    write_json(run / SEAL, {"files": digests(run, [name for name in RESULTS if (run / name).exists()])})


def write_metrics(run: Path, metrics: Any) -> None:
    """Write `metrics.json` as an evaluation would."""
    (run / METRICS).write_text(json.dumps(metrics))
    seal_results(run)
