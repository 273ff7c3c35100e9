"""A stage's folder: what it was made from, whether it is finished, and where an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from prefrec import processes
from prefrec.clock import peak_bytes, reset_peak, spared
from prefrec.data.store import write_whole
from prefrec.errors import ConfigError
from prefrec.models import default_device

STAGE_FILE = "stage.json"

SHARED = {"seconds": "shared_seconds", "cpu_seconds": "shared_cpu_seconds"}
"""What a stage took, and what it would have taken beyond that alone."""


def stage_key(**parts: Any) -> str:
    """A hash of everything a stage depends on (JSON values; the keys of earlier stages among them)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_facts(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and date of the files among `paths` and right inside the folders among them, for a key."""
    places = [p.resolve() for p in paths]
    files = [f for p in places for f in (sorted(p.iterdir()) if p.is_dir() else [p]) if f.is_file()]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def is_finished(folder: Path, key: str) -> bool:
    """True where `folder` holds the finished outcome of the stage with this key."""
    state = _state(folder)
    return bool(state.get("key") == key and state.get("finished"))


@contextmanager
def stage(folder: Path, key: str, kind: str, config: dict[str, Any]) -> Iterator[Path]:
    """The folder to work in. What an interrupted stage of the same key left stays there, to go on from.

    The outcome of another key is moved to `NAME.previous` (of which one is kept), never deleted at once. Of many
    processes the first one sees to the folder, and all leave together.

    `stage.json` says what the stage took, all parts of an interrupted one together but those that ended by a kill:
    `seconds` of wall time, `cpu_seconds` of this process (all its threads), and `peak_bytes`, the most memory that
    the process (on a GPU: torch) held during it. `shared_seconds` and `shared_cpu_seconds` are what it would have
    taken beyond that, had another stage not left it the reference's log-probabilities.

    Raises:
        ConfigError: the folder, or the one that would be moved away for it, holds files but was never a stage's.
    """
    if not processes.is_first():
        processes.wait()
        yield folder
        processes.wait()
        return
    state = _state(folder)
    if folder.exists() and state.get("key") != key:
        previous = folder.with_name(f"{folder.name}.previous")
        for place in (folder, previous):
            _refuse_foreign(place, folder)
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        state = {}
    folder.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {"key": key, "kind": kind, "config": config, "finished": False}
    note |= {name: state.get(name, 0) for name in (*SHARED, "peak_bytes", *SHARED.values())}
    write_json(folder / STAGE_FILE, note)
    device = default_device().type
    reset_peak(device)
    resumed = note["seconds"] > 0  # then the log-probabilities that it finds may be its own, and are counted
    start, cpu_start, spared_start = time.monotonic(), time.process_time(), spared()
    processes.wait()
    try:
        yield folder
        note["finished"] = True
    finally:
        note["seconds"] = round(note["seconds"] + time.monotonic() - start, 1)
        note["cpu_seconds"] = round(note["cpu_seconds"] + time.process_time() - cpu_start, 1)
        note["peak_bytes"] = max(note["peak_bytes"], peak_bytes(device))
        if not resumed:
            note["shared_seconds"] = round(spared().wall - spared_start.wall, 1)
            note["shared_cpu_seconds"] = round(spared().cpu - spared_start.cpu, 1)
        # What went wrong before is told, not that the disk is too full to note it.
        with nullcontext() if note["finished"] else suppress(OSError):
            write_json(folder / STAGE_FILE, note)
    processes.wait()


def taken(state: dict[str, Any], what: str) -> float:
    """What a stage takes by itself, from its `stage.json`: times with a pass that another stage left to it."""
    return float(state[what]) + float(state.get(SHARED.get(what, ""), 0))


def _refuse_foreign(place: Path, folder: Path) -> None:
    """Let nothing be moved or deleted that is not ours."""
    if place.exists() and not (place.is_dir() and ((place / STAGE_FILE).exists() or not any(place.iterdir()))):
        raise ConfigError(
            f"{folder}: cannot be made, as {place} is there and not from prefrec (no {STAGE_FILE} in it); "
            "name another folder, or move it away"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` in `folder`, or None."""
    found = [p for p in folder.glob("checkpoint-*") if read_json(p / "trainer_state.json")]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def read_json(path: Path) -> Any:
    """The JSON value in a file; None where there is no file, or only half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def _state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / STAGE_FILE)
    return state if isinstance(state, dict) else {}
