"""Disks that are full or read-only: real mounts, to be called in a child, whose mounts nobody else sees."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from command import Outcome, prefrec
from prefrec.runs.results import BEST, METRICS, UPDATE
from reliability.children import call
from reliability.whole_runs import END, arguments, differences, finished_files, unfinished
from reliability.works import NEW, write_new

CLONE_NEWNS = 0x00020000
LARGE = "64m"


def why_not() -> str | None:
    """Why this machine cannot be asked; None where it can."""
    return call(_own_mounts)


def shop_options(recipe: Path) -> tuple[str, ...]:
    shop = recipe.parent / "shop"
    files = ("--source", "files", "--interactions", str(shop / "log.csv"), "--items", str(shop / "items.csv"))
    return (*files, "--candidates.size", "6")


def writers(recipe: Path, run: Path) -> list[tuple[str, ...]]:
    model = ("--model.name", recipe.parent / "model", "--model.dtype", "float32", "--model.max-length", "400")
    small = (*model, "--rows", "8")
    commands = [("run", recipe, "--out", run, "--set", "sft.rows=24"), ("report", run)]
    commands += [("prepare", run / "data", *shop_options(recipe)), ("evaluate-adapters", run / "data", *small)]
    commands += [("export", run, "--out", run / "exported")]
    return [tuple(map(str, command)) for command in commands]


def full_disk(recipe: Path, run: Path, whole: Path, size: str) -> tuple[str, list[str]]:
    """A run on a full disk must say so, keep what it has, and go on once there is room; the stage, what was wrong."""
    with _disk(run.parent, size):
        first = prefrec(*arguments(recipe, run))
        stage, kept = unfinished(run), finished_files(run)
        if stage == END:
            return stage, differences(run, whole)
        wrong = _refused(first, "No space left on device")
        _mount("-o", f"remount,size={LARGE}", run.parent)
        again = prefrec(*arguments(recipe, run))
        if again.code:
            return stage, [*wrong, f"did not go on: {again.err.strip()}"]
        after = finished_files(run)
        wrong += [f"{name} was changed" for name, content in kept.items() if after.get(name) != content]
        return stage, wrong + differences(run, whole)


def full_disk_over_data(prepare: tuple[str, ...], folder: Path) -> list[str]:
    """`prefrec prepare` over older data on a full disk must leave the older data; returns what went wrong."""
    with _disk(folder.parent, "400k"):
        assert prefrec("prepare", folder, *prepare).code == 0
        before = _contents(folder)
        with contextlib.suppress(OSError), (folder.parent / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"\0" * 4096)
        outcome = prefrec("prepare", folder, *prepare, "--seed", "1")
        return _refused(outcome, "No space left on device") + _changed(before, folder)


def read_only(commands: list[tuple[str, ...]], folder: Path) -> list[str]:
    """Commands that write into a read-only folder must say so and change nothing; returns what went wrong."""
    _own_mounts()
    _mount("--bind", folder, folder)
    _mount("-o", "remount,ro,bind", folder)
    before, wrong = _contents(folder), []
    for command in commands:
        found = _refused(prefrec(*command), "Read-only file system; name another folder")
        wrong += [f"{' '.join(command)}: {w}" for w in found + _changed(before, folder)]
    return wrong


VERBS = ("init", "prepare", "evaluate", "report", "recommend", "recommend as CSV", "export", "export merged")
VERBS += ("update", "tune", "published-json")
"""Commands that write, and whose files are compared with those of an undisturbed command."""

ROOMS = (0, 1, 3, 8, 24, 64, 160)
"""KiB that are free when a command starts; a page of a tmpfs has 4 KiB."""


def verb_on_full_disk(verb: str, recipe: Path, whole: Path, folder: Path) -> list[str]:
    """A verb must say which file a full disk lacks, leave nothing half-written, and go on when there is room.

    The disk is filled up to each of `ROOMS` before the verb starts. The run that the verb reads is on the disk, too.

    Returns:
        What went wrong.
    """
    _own_mounts()
    write_new(recipe, recipe.parent)
    disk, wanted, wrong, full = folder / "disk", folder / "undisturbed", [], 0
    arguments = _verb(verb, recipe, shutil.copytree(whole, wanted / "run"), wanted)
    assert (made := prefrec(*arguments)).code == 0, made.err
    for room in ROOMS:
        with _disk(disk, LARGE):
            run = shutil.copytree(whole, disk / "run")
            before = _contents(disk)
            _fill(disk / "ballast", 1024 * room)
            arguments = _verb(verb, recipe, run, disk)
            first = prefrec(*arguments)
            full += first.code != 0
            found = _refused(first, "No space left on device") if first.code else []
            found += [f"{name} is left over" for name in _contents(disk) if name.endswith(".tmp")]
            (disk / "ballast").unlink()
            kept = {name for name in before if verb != "report" or name != "run/report.html"}
            found += [f"{name} was changed" for name in sorted(kept) if _contents(disk).get(name) != before[name]]
            again = prefrec(*arguments) if first.code else first
            if again.code:
                found.append(f"did not go on: {again.err.strip()[-300:]}")
            else:
                found += _unlike(wanted, disk)
            wrong += [f"{room} KiB free: {what}" for what in found]
    return wrong if full else ["was never refused"]


def _verb(verb: str, recipe: Path, run: Path, out: Path) -> tuple[str, ...]:
    """Return the arguments of a verb that reads `run` and writes to `out`."""
    shop = recipe.parent / "shop"
    files = ("--interactions", shop / "log.csv", "--items", shop / "items.csv")
    model = ("--model.name", recipe.parent / "model", "--model.dtype", "float32", "--model.max-length", "400")
    adapter = f"s-dpo={run / 'align' / 's-dpo' / 'adapter'}"
    tuned = ("--set", "sft.rows=8", "--set", "align=[]", "--field", "sft.epochs=1,2", "--trials", 2)
    every = ("--ranker", "window co-occurrence", "--all-users", "--out")
    arguments = {
        "init": ("init", *files, "--out", out / "shop.yaml"),
        "prepare": ("prepare", out / "data", *shop_options(recipe)),
        "evaluate": (
            "evaluate-adapters",
            run / "data",
            *model,
            "--rows",
            "8",
            "--adapter",
            adapter,
            "--out",
            out / "results",
        ),
        "report": ("report", run),
        "recommend": ("recommend", run, *every, out / "top.parquet"),
        "recommend as CSV": ("recommend", run, *every, out / "top.csv"),
        "export": ("export", run, "--ranker", "s-dpo", "--out", out / "exported"),
        "export merged": ("export", run, "--ranker", "s-dpo", "--merged", "--out", out / "exported"),
        "update": ("update", run, "--interactions", recipe.parent / NEW, "--out", out / "updated"),
        "tune": ("lab", "tune", recipe, *tuned, "--out", out / "tuned"),
        "published-json": ("lab", "published-json", run / "data", out / "json"),
    }[verb]
    return tuple(map(str, arguments))


def _fill(file: Path, room: int) -> None:
    """Fill the disk of a file, except for `room` bytes."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(b"\0" * 4096)
    os.truncate(file, file.stat().st_size - room)


def _unlike(wanted: Path, found: Path) -> list[str]:
    """Return the files that two folders do not share, and the tables, weights and metrics that differ."""
    one, other = _contents(wanted), _contents(found)
    wrong = [f"{n} is {'missing' if n in one else 'left over'}" for n in sorted(one.keys() ^ other.keys())]
    same = [n for n in one.keys() & other.keys() if n.endswith((".parquet", "model.safetensors", ".csv", ".json"))]
    return wrong + [f"{n} is another one" for n in sorted(same) if _of_place(n, one[n]) != _of_place(n, other[n])]


def _of_place(name: str, content: bytes) -> Any:
    """Return a file's content without what names the folder or the time: digests of inputs, and states of stages."""
    if not name.endswith(".json"):
        return content
    is_result = Path(name).name in (METRICS, BEST, UPDATE)
    return {**json.loads(content), "made_of": None} if is_result else None


def _refused(outcome: Outcome, reason: str) -> list[str]:
    wrong = [] if outcome.code == 1 else [f"exit code {outcome.code}, not 1"]
    if any(part not in outcome.err for part in ("written", *reason.split("; "))):
        wrong.append(f"unclear: {outcome.err.strip()[-300:]}")
    return wrong


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _changed(before: dict[str, bytes], folder: Path) -> list[str]:
    after = _contents(folder)
    return [f"{n} was changed" for n in sorted(before.keys() | after.keys()) if before.get(n) != after.get(n)]


@contextlib.contextmanager
def _disk(folder: Path, size: str) -> Iterator[None]:
    """An empty file system of `size` bytes in `folder`."""
    _own_mounts()
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@cache
def _own_mounts() -> str | None:
    """Give this process its own view of the mounts; why it cannot have one.

    Threads that are there already keep the old view, so this comes before a command starts those of polars.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return f"own mounts: {os.strerror(ctypes.get_errno())}"
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return made.stderr.strip() or None


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)
