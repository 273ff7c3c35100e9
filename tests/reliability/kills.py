"""`kill -9` at a random moment of a run; the same command again must end as if nothing had happened."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from command import prefrec
from reliability.children import PATIENCE, Child, call
from reliability.whole_runs import END, arguments, differences, took, undisturbed, unfinished

ATTEMPTS, SOONER = 6, 0.8
"""How often a kill is tried that comes too late, and after which share of the time before, at the most."""


@dataclass(frozen=True)
class Killed:
    moment: float  # as a share of the time that a run was thought to take
    stage: str  # that it hit; `the end` where the run had ended before
    lost: list[str]  # what is not as in the undisturbed run
    seconds: float  # that a run is thought to take, now that this one is known

    @property
    def hit(self) -> bool:
        """False where the kill came after the end, which proves nothing."""
        return self.stage != END


def kill_runs(recipe: Path, folder: Path, count: int, seed: int) -> Iterator[Killed]:
    """Kill `count` runs, one at a random moment of each `count`-th part of the run's time, in a random order."""
    whole, rng = folder / "undisturbed", random.Random(seed)
    seconds = undisturbed(recipe, whole)
    for number in rng.sample(range(count), count):
        killed = kill_running(recipe, folder / f"killed-{number}", whole, seconds, (number + rng.random()) / count)
        seconds = killed.seconds
        yield killed


def kill_running(recipe: Path, folder: Path, whole: Path, seconds: float, moment: float) -> Killed:
    """`kill_run`, in folders within `folder`; where it comes after the end, again by the time of the missed run."""
    killed = kill_run(recipe, folder / "0", whole, seconds, moment)
    for attempt in range(1, ATTEMPTS):
        if killed.hit or killed.lost:
            break
        killed = kill_run(recipe, folder / str(attempt), whole, killed.seconds, moment)
    return killed


def kill_run(recipe: Path, run: Path, whole: Path, seconds: float, moment: float) -> Killed:
    """Kill a run at a share of the `seconds` it is thought to take, run it again, and compare it with `whole`."""
    child, until = Child(prefrec, *arguments(recipe, run)), time.monotonic() + PATIENCE
    while not (run / "recipe.yaml").exists() and time.monotonic() < until:
        time.sleep(0.002)
    ended = child.ended(moment * seconds)
    child.kill()
    stage = unfinished(run)
    if stage == END:
        seconds = min(took(run), SOONER * seconds)
    again = call(prefrec, *arguments(recipe, run))
    lost = differences(run, whole) if again.code == 0 else [again.err.strip()]
    if ended and stage != END:
        lost = ["ended before it was killed", *lost]
    return Killed(moment, stage, lost, seconds)
