"""`kill -9` right after each change of a command's folder; the same command again must end as if nothing happened.

A change is a call that opened a file to create or empty it, wrote, renamed, removed or synced one, or made or removed
a folder, from Python or from a library below it (`crashes.c`). The moment just before a change is on the disk the
moment just after the change before it, so no point is left out.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from reliability import works
from reliability.children import PATIENCE, Child, call
from reliability.works import Work

SIGKILL = -9


@dataclass(frozen=True)
class Crash:
    point: int  # number of the change, from 1
    points: int  # number of changes of an undisturbed command
    change: str  # the call and the file
    stage: str  # that it hit; `the end` after the last change
    lost: list[str]  # what is not as in the undisturbed run


def why_not() -> str | None:
    """Return why runs cannot be killed this way on this machine; None if they can."""
    if sys.platform != "linux" or not shutil.which("cc"):
        return "this needs Linux and a C compiler named cc"
    return None


def small(recipe: Path, folder: Path) -> Path:
    """Write the recipe with two steps and two checkpoints per stage, and few rows."""
    smaller: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for stage in (smaller["sft"], *smaller["align"]):
        stage |= {"rows": 8, "global_batch_size": 4, "save_steps": 1}
    smaller["sft"] |= {"epochs": 1, "eval_rows": 2, "eval_steps": 1}
    smaller["evaluate"] |= {"rows": 2, "full_rows": 1, "generate_rows": 1, "zero_shot": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(smaller), encoding="utf-8")
    return folder / "recipe.yaml"


def crash_runs(recipe: Path, folder: Path, seed: int, work: type[Work] = Work) -> Iterator[Crash]:
    """Kill a command on the small recipe, once after each change, in an order that `seed` fixes."""
    arguments = (work.__name__, small(recipe, folder), folder, seed)
    with contextlib.closing(preloaded("crashes", folder, *arguments)) as lines:
        for line in lines:
            yield Crash(**line)


def preloaded(module: str, folder: Path, *arguments: Any) -> Iterator[dict[str, Any]]:
    """Run a module of this package with its C library loaded before all others; yield the JSON of its lines.

    A process of its own, because the library must be there when a process starts. Its children inherit it.
    """
    library, source = folder / f"{module}.so", Path(__file__).with_name(f"{module}.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests / "support"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": paths}
    command = [sys.executable, "-m", f"reliability.{module}", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            process.terminate()
    assert process.returncode in (0, -15), f"reliability.{module} ended with {process.returncode}"


def _crash_runs(work: Work, seed: int) -> Iterator[Crash]:
    whole = work.folder / "undisturbed"
    work.prepare()
    changes = call(_listed, work, whole)
    for point in random.Random(seed).sample(range(1, len(changes) + 1), len(changes)):
        out = work.folder / "crashed"
        child = Child(_carry_out, work, out, point)
        child.ended(PATIENCE)
        code, part = child.exit_code(), work.at(out)
        work.disturb(out, random.Random(point))
        again = call(work.carry_out, out)
        lost = work.lost(out, whole) if again.code == 0 else [again.err.strip()]
        lost += [f"ended with {code}, not killed"] * (code != SIGKILL)
        yield Crash(point, len(changes), changes[point - 1], part, lost)
        shutil.rmtree(out)


def _listed(work: Work, out: Path) -> list[str]:
    """Carry the command out undisturbed; return its changes."""
    with tempfile.TemporaryFile("w+") as changes:
        _carry_out(work, out, 0, changes.fileno())
        changes.seek(0)
        return changes.read().splitlines()


def _carry_out(work: Work, out: Path, point: int, changes: int = -1) -> None:
    ctypes.CDLL(None).crash_at(str(out).encode(), ctypes.c_long(point), changes)
    outcome = work.carry_out(out)
    assert outcome.code == 0, outcome.err


if __name__ == "__main__":
    made = getattr(works, sys.argv[1])(Path(sys.argv[2]), Path(sys.argv[3]))
    with contextlib.closing(_crash_runs(made, int(sys.argv[4]))) as crashes:
        for crash in crashes:
            print(json.dumps(asdict(crash)), flush=True)  # noqa: T201
