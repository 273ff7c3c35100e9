"""Wall clocks that jump by a day or a year, back or forth: what commands and servers say must not depend on the time.

A jump is that of one process (`clocks.c`); a file's time is the kernel's, and is moved where a test is about it.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from starlette.testclient import TestClient

from command import Outcome
from prefrec.pipeline.opened import open_run
from prefrec.rankers.baselines import BY_TIME
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine
from reliability import works
from reliability.children import Child, call
from reliability.crashes import preloaded, small
from reliability.works import Work

DAY = 86_400
START = 1_704_067_200
"""First moment of the log: the start of 2024, in seconds."""

JUMPS = (-20 * 365 * DAY, -365 * DAY, -DAY, DAY, 365 * DAY)
"""Seconds. The first one leads to a time at which no data of a run have been there."""

NAMES = ("popularity", *BY_TIME)
"""Rankers that answer to new visitors."""

KINDS = ("while it works", "between a kill and the next command", "beside another command", "under a server")


@dataclass(frozen=True)
class Jumped:
    kind: str  # of `KINDS`
    days: int
    lost: list[str]  # what is not as without a jump


def jumps(recipe: Path, folder: Path, seed: int, work: type[Work] = Work) -> Iterator[Jumped]:
    """Let the clock of a command on the small recipe jump at random moments, in all kinds of `KINDS` in turn."""
    with contextlib.closing(preloaded("clocks", folder, work.__name__, recipe, folder, seed)) as lines:
        for line in lines:
            yield Jumped(**line)


def _jumps(work: Work, seed: int) -> Iterator[Jumped]:
    whole, out, rng = work.folder / "undisturbed", work.folder / "jumped", random.Random(seed)
    work.prepare()
    readings, seconds = call(_carry_out, work, whole, 0, 0)
    while True:
        for kind in KINDS:
            jump, moment = rng.choice(JUMPS), rng.random()
            if kind == KINDS[0]:
                lost = _while_working(work, out, whole, round(moment * readings), jump)
            elif kind == KINDS[1]:
                lost = _after_a_kill(work, out, whole, moment * seconds, jump)
            elif kind == KINDS[2]:
                lost = _beside(work, out, whole, jump)
            else:
                lost = call(_under_a_server, whole, jump)
            yield Jumped(kind, jump // DAY, lost)
            shutil.rmtree(out, ignore_errors=True)


def _carry_out(work: Work, out: Path, reading: int, jump: int) -> tuple[int, float]:
    """Carry a command out; return how often it read the clock, and the seconds that it took."""
    start = time.monotonic()
    _jump_at(reading, jump)
    outcome = work.carry_out(out)
    assert outcome.code == 0, outcome.err
    return ctypes.CDLL(None).clock_readings(), time.monotonic() - start


def _jump_at(reading: int, jump: int) -> None:
    ctypes.CDLL(None).jump_at(ctypes.c_long(reading), ctypes.c_long(jump))


def _jumped(work: Work, out: Path, jump: int) -> Outcome:
    """Carry a command out whose clock differs from its first moment on."""
    _jump_at(0, jump)
    return work.carry_out(out)


def _while_working(work: Work, out: Path, whole: Path, reading: int, jump: int) -> list[str]:
    try:
        call(_carry_out, work, out, reading, jump)
    except AssertionError as e:
        return [str(e)]
    return work.lost(out, whole)


def _after_a_kill(work: Work, out: Path, whole: Path, seconds: float, jump: int) -> list[str]:
    """Kill a command after so many seconds; the clock jumps between two of its files, and again before the next."""
    child = Child(work.carry_out, out)
    child.ended(seconds)
    child.kill()
    files = sorted((p for p in out.rglob("*") if not p.is_symlink()), key=lambda p: p.stat().st_mtime_ns)
    for path in files[len(files) // 2 :]:
        moment = path.stat().st_mtime + jump
        os.utime(path, (moment, moment))
    again = call(_jumped, work, out, -jump)
    return work.lost(out, whole) if again.code == 0 else [again.err.strip()]


def _beside(work: Work, out: Path, whole: Path, jump: int) -> list[str]:
    """Run a command whose clock differs beside one that works: it must stop, and name the other one."""
    child = Child(work.carry_out, out)
    while not child.ended(0.01) and not [*out.glob(".lock.json")]:
        pass
    for path in out.glob(".lock*"):  # a lock that looks as old as the jump
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (path.stat().st_mtime - abs(jump),) * 2)
    second = call(_jumped, work, out, jump)
    lost = [] if child.ended(0) or "is running here" in second.err else [f"two at once: {second.code} {second.err}"]
    first = child.result()
    return lost + ([first.err] if first.code else work.lost(out, whole))


def _under_a_server(run: Path, jump: int) -> list[str]:
    """Ask a server before and after a jump, and one that starts after it: the answers must be the same."""
    told = []
    for jumps_later in (True, False):
        _jump_at(0, 0 if jumps_later else jump)
        engine = open_engine(open_run(run))
        try:
            with TestClient(create_app(engine, Settings("tiny", "llama"))) as client:
                told.append(_asked(client))
                _jump_at(0, jump)
                told.append(_asked(client))
        finally:
            engine.close()
    return ["other answers after a jump"] * any(answers != told[0] for answers in told)


def _asked(client: TestClient) -> list[Any]:
    """Ask for known, new and unknown visitors, among them such as get recent popularity."""
    asked: list[dict[str, Any]] = [{"history": [{"item_id": "i1"}]}, {"history": []}, {"user_id": "u01"}]
    bodies = [body | ranker for body in asked for ranker in ({}, *({"ranker": name} for name in NAMES))]
    answers = [client.post("/v1/recommend", json=body) for body in bodies]
    return [(answer.status_code, answer.json()) for answer in answers]


def dated(recipe: Path, folder: Path) -> Path:
    """Write a copy of the recipe whose log has dates, an hour apart, and whose table has recent popularity."""
    raw: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    log = pl.read_csv(raw["data"]["interactions"]).with_columns(timestamp=START + pl.col("timestamp") * 3600 // 100)
    log.write_csv(folder / "log.csv")
    raw["data"]["interactions"] = str(folder / "log.csv")
    (folder / "dated.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "dated.yaml"


if __name__ == "__main__":
    folder = Path(sys.argv[3])
    made = getattr(works, sys.argv[1])(small(dated(Path(sys.argv[2]), folder), folder), folder)
    with contextlib.closing(_jumps(made, int(sys.argv[4]))) as tried:
        for jumped in tried:
            print(json.dumps(asdict(jumped)), flush=True)  # noqa: T201
