"""A stage's folder: its key, whether it is finished, and where an interrupted stage resumes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.markup import escape
from safetensors import SafetensorError, safe_open

from prefrec import processes
from prefrec.console import say, warn
from prefrec.errors import ConfigError, DataError, without_secrets
from prefrec.files import altered, clear_draft, digests, folder_files, read_json, share, sync, write_json
from prefrec.resources import loaded_torch, peak_bytes, processor_says, reset_peak, used_device

STAGE_FILE = "stage.json"
PREVIOUS, KEPT = ".previous", 3
"""Suffix of folders with earlier results (`NAME.previous-N`; the newest has the highest N), and how many are kept."""
CHECKPOINT = "checkpoint-"
_SIGNS = ("protocol.json", "log.json", "adapter/*", "blend.json", f"{CHECKPOINT}*/")
"""Patterns of files. A stage's folder has at least one of them, even without `stage.json`."""
TRAINER_STATE = "trainer_state.json"
"""The last file of a checkpoint to be written."""


def stage_key(**parts: Any) -> str:
    """Return a hash of everything that a stage depends on, as JSON values and keys of earlier stages."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def is_finished(folder: Path, key: str) -> bool:
    """Return True if `folder` has the finished and undamaged result with this key.

    A result with this key that was set aside is restored first. Damaged files are deleted with a warning, and the
    stage then counts as unfinished. A result without `stage.json` is set aside when the stage runs again. All
    processes of a job must call this function.
    """
    if processes.is_first():
        _bring_back(folder, key)
        _drop_damaged(folder)
        clear_draft(folder / STAGE_FILE)  # of a process that was killed after the last change of the stage
    processes.wait()
    state = read_state(folder)
    return bool(state.get("key") == key and _is_sealed(folder, state))


def is_aside(folder: Path, key: str) -> bool:
    """Return True if a finished result with this key was set aside, so that `is_finished` would restore it."""
    kept = [] if read_state(folder).get("key") == key else map(read_state, _previous(folder).values())
    return any(state.get("key") == key and state.get("finished") for state in kept)


def damaged(folder: Path) -> list[str]:
    """Return the files of a stage that are missing, or differ from what the stage wrote.

    This is `stage.json` itself if it does not say that the stage is finished and which files it made.
    """
    state = read_state(folder)
    return altered(folder, state["files"]) if _is_sealed(folder, state) else [STAGE_FILE]


def check_whole(folder: Path) -> None:
    """Raise DataError if a stage is damaged or unfinished."""
    if broken := damaged(folder):
        raise DataError(
            f"{folder} is damaged or unfinished ({', '.join(broken)}): run the recipe again (`prefrec run`)"
        )


def _is_sealed(folder: Path, state: dict[str, Any]) -> bool:
    """Return True if a stage is finished and says which files it made. A seal of nothing is for an empty folder."""
    files = state.get("files")
    return state.get("finished") is True and isinstance(files, dict) and bool(files or not _made(folder))


@contextmanager
def stage(folder: Path, key: str, kind: str, config: dict[str, Any], **more: Any) -> Iterator[Path]:
    """Yield the folder to work in, with the files of an interrupted stage with the same key.

    A result with another key moves to `NAME.previous-N`. Checkpoints are deleted at the end. With many processes, the
    first one manages the folder, and all leave together. `stage.json` gets the arguments, the machine that finished
    the stage, the SHA-256 of its `files`, and its costs, summed over interruptions but not kills: wall time in
    seconds, CPU time of this process in seconds, and peak memory in bytes (on a GPU: of torch).

    Args:
        folder: of the stage.
        key: hash of its inputs (`stage_key`).
        kind: `prepare`, `sft`, `align`, or the kind of a ranker.
        config: settings.
        **more: further fields of `stage.json`.

    Raises:
        ConfigError: the folder has a reserved name, has files but is not a stage's, or belongs to another stage at
            the end.
    """
    refuse_name(folder.name)
    if not processes.is_first():
        processes.wait()
        yield folder
        processes.wait()
        return
    _bring_back(folder, key)
    state = read_state(folder)
    if folder.exists() and state.get("key") != key:
        _set_aside(folder)
        state = {}
    folder.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {"key": key, "kind": kind, "config": without_secrets(config), **more, "finished": False}
    note |= {name: state.get(name, 0) for name in ("seconds", "cpu_seconds", "peak_bytes")}
    write_json(folder / STAGE_FILE, note)
    reset_peak(used_device())
    start, cpu_start = time.monotonic(), time.process_time()
    processes.wait()
    try:
        yield folder
        _check_own(folder, key)
        share([folder / name for name in _made(folder)], like=folder / STAGE_FILE)  # a server may be another user
        note |= {"finished": True, "environment": machine(), "files": seal(folder)}
    finally:
        note["seconds"] = round(note["seconds"] + time.monotonic() - start, 1)
        note["cpu_seconds"] = round(note["cpu_seconds"] + time.process_time() - cpu_start, 1)
        note["peak_bytes"] = max(note["peak_bytes"], peak_bytes(used_device()))
        if read_state(folder).get("key") == key:
            # If the stage failed, an error of a full disk must not hide its error.
            with nullcontext() if note["finished"] else suppress(OSError):
                write_json(folder / STAGE_FILE, note)
                sync([folder / STAGE_FILE, folder])
    _drop_checkpoints(folder)
    processes.wait()


def _check_own(folder: Path, key: str) -> None:
    if read_state(folder).get("key") != key:
        raise ConfigError(
            f"{folder}: another command has written to this stage meanwhile, and this result is lost; wait until the "
            "other command has finished, then run this one again"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a stage's `stage.json`; {} if it is missing or damaged."""
    return read_json(folder / STAGE_FILE)


def refuse_name(name: str) -> None:
    """Raise ConfigError if a stage's name ends like the folders of earlier results."""
    if is_previous(name):
        raise ConfigError(f"{name!r} cannot name a stage: folders of earlier results end in {PREVIOUS}")


def is_previous(name: str) -> bool:
    """Return True if a folder of this name has an earlier result."""
    return bool(re.search(rf"{re.escape(PREVIOUS)}-\d+$", name))


def machine() -> dict[str, Any]:
    """Return versions and machine: with the recipe, everything that is needed to reproduce a result.

    Torch and its libraries are named if this process has loaded them.
    """
    processor = processor_says("model name")
    return {
        **{name: version(name) for name in ("prefrec", "polars", "numpy", "scipy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{processor} × {os.cpu_count()}" if processor else platform.processor(),
        **_of_torch(),
        "commit": _commit(),
    }


def _of_torch() -> dict[str, Any]:
    """Return versions and settings of torch and its libraries; {} if this process has not loaded torch."""
    torch = loaded_torch()
    if torch is None:
        return {}
    from prefrec.cpu.linear import linear_backend

    return {
        **{name: version(name) for name in ("transformers", "peft")},
        "torch": str(torch.__version__),  # with the build, such as +cpu or +cu130
        "threads": torch.get_num_threads(),
        "linear": linear_backend(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@cache
def _commit() -> str | None:
    """Return the commit of this package's source tree, with a + if its files differ from the commit."""
    git = partial(subprocess.run, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", __file__])
        head = git(["git", "rev-parse", "--short=10", "HEAD"]).stdout.strip()
        return head + ("+" if git(["git", "diff", "--name-only", "HEAD", "--", "."]).stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def seal(folder: Path) -> dict[str, str]:
    """Flush what a stage made to disk, and return file → digest."""
    made = _made(folder)
    files = [folder / f for f in made]
    sync([*files, *{f.parent for f in files}])
    return digests(folder, made)


def _made(folder: Path) -> list[str]:
    """Return the files that a stage made. Those of tensorboard in runs/ may be deleted."""
    return [f for f in folder_files(folder) if f != STAGE_FILE and not f.startswith((CHECKPOINT, "runs/"))]


def _drop_damaged(folder: Path) -> None:
    """Delete damaged files of a finished stage with a warning; the stage then counts as unfinished."""
    state = read_state(folder)
    if state.get("finished") is False:
        return  # interrupted: it will resume
    if not _is_sealed(folder, state):
        if _is_ours(folder):
            warn(f"{escape(str(folder / STAGE_FILE))} is missing or cannot be read; the stage runs again")
        if state:
            write_json(folder / STAGE_FILE, {})  # without a key, so that the folder is set aside
    elif broken := altered(folder, state["files"]):
        warn(f"{escape(str(folder))}: {escape(', '.join(broken))} damaged or missing; the stage runs again")
        write_json(folder / STAGE_FILE, {"key": state.get("key"), "finished": False})
        for file in set(folder_files(folder)) & set(broken):
            (folder / file).unlink()


def _is_ours(folder: Path) -> bool:
    """Return True if a folder has a `stage.json`, or other files of a stage."""
    return any(any(folder.glob(pattern)) for pattern in (STAGE_FILE, *_SIGNS))


def _previous(folder: Path) -> dict[int, Path]:
    """Return number → folder of a stage's earlier results, oldest first."""
    start = f"{folder.name}{PREVIOUS}-"
    earlier = {p.name.removeprefix(start): p for p in folder.parent.glob(f"{start}*")}
    return {int(n): earlier[n] for n in sorted((n for n in earlier if n.isdecimal()), key=int)}


def _set_aside(folder: Path, most: int = KEPT) -> None:
    """Move a stage's folder to `NAME.previous-N`, and keep at most `most` earlier results."""
    if folder.is_dir() and all(p.name.startswith(f".{STAGE_FILE}.") for p in folder.iterdir()):
        shutil.rmtree(folder)  # killed before the first file was complete
        return
    if not _is_ours(folder):
        raise ConfigError(
            f"{folder} already exists and is not from prefrec (it has no {STAGE_FILE}): choose another folder, or "
            "move it away"
        )
    if not (folder / STAGE_FILE).exists():
        write_json(folder / STAGE_FILE, {})
    kept = _previous(folder)
    results = [p for p in kept.values() if (p / STAGE_FILE).is_file()]
    for old in results[: max(0, len(results) + 1 - most)]:
        write_json(old / STAGE_FILE, {})  # a partly deleted result must not count as complete
        shutil.rmtree(old, ignore_errors=True)
    folder.rename(folder.with_name(f"{folder.name}{PREVIOUS}-{max(kept, default=0) + 1}"))


def _bring_back(folder: Path, key: str) -> None:
    """Restore the newest earlier result with the wanted key, unless the folder has that key."""
    if read_state(folder).get("key") != key:
        for earlier in reversed(_previous(folder).values()):
            if read_state(earlier).get("key") == key:
                say(f"{folder.name}: restored from {earlier.name}")
                # After a kill between the two renames both results are set aside, where the next call finds them.
                if folder.exists():
                    _set_aside(folder, KEPT + 1)
                earlier.rename(folder)
                break
    if read_state(folder).get("finished"):
        _drop_checkpoints(folder)


def _drop_checkpoints(folder: Path) -> None:
    for left in folder.glob(f"{CHECKPOINT}*"):
        # Without this file, training does not resume from a partly deleted checkpoint.
        (left / TRAINER_STATE).unlink(missing_ok=True)
        shutil.rmtree(left, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete and readable `checkpoint-N` in `folder`, or None."""
    complete = [p for p in folder.glob(f"{CHECKPOINT}*") if read_json(p / TRAINER_STATE)]
    for path in sorted(complete, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        if not (broken := [f.name for f in sorted(path.iterdir()) if not _is_readable(f)]):
            return path
        warn(f"{escape(str(path))}: {', '.join(broken)} damaged; training resumes from an earlier checkpoint")
    return None


def _is_readable(file: Path) -> bool:
    """Return False if a file of a checkpoint is truncated, or a torch archive with wrong checksums."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="np"):
                return True
        if file.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, SafetensorError):
        return False
    return True
