"""Disks that are full or read-only: real mounts, to be called in a child, whose mounts nobody else sees."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from command import Outcome, prefrec
from reliability.children import call
from reliability.whole_runs import END, arguments, differences, finished_files, unfinished

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
    commands += [("prepare", run / "data", *shop_options(recipe)), ("evaluate", run / "data", *small)]
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


def _own_mounts() -> str | None:
    """Give this process its own view of the mounts; why it cannot have one."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return f"own mounts: {os.strerror(ctypes.get_errno())}"
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return made.stderr.strip() or None


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)
