"""`kill -9` at a random moment of a command; the same command again must end as if nothing had happened."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reliability.children import PATIENCE, Child, call
from reliability.whole_runs import END, took
from reliability.works import Work

ATTEMPTS, SOONER = 6, 0.8
"""How often a kill is tried that comes too late, and after which share of the time before, at the most."""


@dataclass(frozen=True)
class Killed:
    moment: float  # as a share of the time that a command was thought to take
    stage: str  # that it hit; `the end` where the command had ended before
    lost: list[str]  # what is not as in the undisturbed folder
    seconds: float  # that a run is thought to take, now that this one is known

    @property
    def hit(self) -> bool:
        """False where the kill came after the end, which proves nothing."""
        return self.stage != END


def kill_runs(work: Work, folder: Path, count: int, seed: int) -> Iterator[Killed]:
    """Kill `count` commands, one at a random moment of each `count`-th part of their time, in a random order."""
    whole, rng = folder / "undisturbed", random.Random(seed)
    work.prepare()
    seconds = _undisturbed(work, whole)
    for number in rng.sample(range(count), count):
        killed = kill_running(work, folder / f"killed-{number}", whole, seconds, (number + rng.random()) / count)
        seconds = killed.seconds
        yield killed


def _undisturbed(work: Work, out: Path) -> float:
    """Carry a command out; return the seconds from its first file to its last."""
    made = call(work.carry_out, out)
    assert made.code == 0, made.err
    return took(out)


def kill_running(work: Work, folder: Path, whole: Path, seconds: float, moment: float) -> Killed:
    """`kill_command`, in folders within `folder`; if it comes after the end, again by the time of the missed one."""
    killed = kill_command(work, folder / "0", whole, seconds, moment)
    for attempt in range(1, ATTEMPTS):
        if killed.hit or killed.lost:
            break
        killed = kill_command(work, folder / str(attempt), whole, killed.seconds, moment)
    return killed


def kill_command(work: Work, out: Path, whole: Path, seconds: float, moment: float) -> Killed:
    """Kill a command at a share of the `seconds` it is thought to take, run it again, compare it with `whole`."""
    child, until = Child(work.carry_out, out), time.monotonic() + PATIENCE
    while not (out / "recipe.yaml").exists() and time.monotonic() < until:
        time.sleep(0.002)
    ended = child.ended(moment * seconds)
    child.kill()
    stage = work.at(out)
    if stage == END:
        seconds = min(took(out), SOONER * seconds)
    again = call(work.carry_out, out)
    lost = work.lost(out, whole) if again.code == 0 else [again.err.strip()]
    if ended and stage != END:
        lost = ["ended before it was killed", *lost]
    return Killed(moment, stage, lost, seconds)
