"""`kill -9` at a random moment of a run; the same command again must end as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from command import prefrec
from reliability.children import PATIENCE, Child, call
from reliability.whole_runs import END, arguments, differences, undisturbed, unfinished

ATTEMPTS, SOONER = 6, 0.8
"""How often a kill that came too late is tried again, and after which share of the time before."""


@dataclass(frozen=True)
class Killed:
    """What became of a run that was killed.

    Attributes:
        moment: of the kill, as a share of the undisturbed run's time.
        stage: that it hit; `the end` where the run had ended before.
        lost: what is not as in the undisturbed run; empty where all is.
    """

    moment: float
    stage: str
    lost: list[str]


def kill_runs(recipe: Path, folder: Path, count: int, seed: int) -> Iterator[Killed]:
    """Kill `count` runs, one at a random moment of each `count`-th part of the run's time.

    A kill that comes after the run's end (the machine was slower before) is tried again, sooner.
    """
    whole, rng = folder / "undisturbed", random.Random(seed)
    seconds = undisturbed(recipe, whole)
    for number in range(count):
        moment = (number + rng.random()) / count
        for attempt in range(ATTEMPTS):
            killed = kill_run(recipe, folder / f"killed-{number}-{attempt}", whole, seconds, moment)
            if killed.stage != END or killed.lost or attempt == ATTEMPTS - 1:
                break
            seconds *= SOONER
        yield killed


def kill_run(recipe: Path, run: Path, whole: Path, seconds: float, moment: float) -> Killed:
    """Kill a run, run the same command again, and compare with the run `whole`.

    Args:
        recipe: of the runs.
        run: folder of the run.
        whole: folder of the undisturbed run.
        seconds: that it took.
        moment: when to kill, as a share of them.
    """
    child = Child(prefrec, *arguments(recipe, run))
    until = time.monotonic() + PATIENCE
    while not (run / "recipe.yaml").exists() and time.monotonic() < until:
        time.sleep(0.002)
    child.ended(moment * seconds)
    child.kill()
    stage = unfinished(run)
    again = call(prefrec, *arguments(recipe, run))
    lost = differences(run, whole) if again.code == 0 else [again.err.strip()]
    return Killed(moment, stage, lost)
