"""Remaining measurements, their expected time, and the budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefrec.console import say
from prefrec_lab.bench.job import Job, Measured
from prefrec_lab.bench.records import Key, is_final, measurements, read_records
from prefrec_lab.bench.settings import MATMUL, BenchSettings


def missing_repetitions(records: Sequence[dict[str, Any]], job: Job) -> list[int]:
    """Return the numbers of the repetitions to come, from 1; none if the job cannot be measured."""
    if is_final(records, job.key):
        return []
    done = {r["repetition"] for r in measurements(records, job.key)}
    return [r for r in range(1, 1 + job.settings.repetitions) if r not in done]


def label(job: Job) -> str:
    """Return a job in words."""
    size = f"N={job.negatives}" if job.section in ("steps", "growth") else f"of {job.negatives + 1}"
    return f"{job.section} {size} {job.method}"


@dataclass
class Progress:
    """Prints each measurement with the remaining time, and refuses jobs that would exceed the budget."""

    settings: BenchSettings
    out: Path  # folder of the measurements
    jobs: Sequence[Job]  # all that are to be measured
    _began: float = field(default_factory=lambda: time.monotonic())
    _pace: dict[tuple[str, str], float] = field(default_factory=dict)  # section, method → seconds a token
    _left: dict[Key, int] = field(default_factory=dict)  # measurements to come, with the warm-up

    def __post_init__(self) -> None:
        records = read_records(self.out)
        for r in records:
            if r["kind"] == "measurement":
                self._pace[r["section"], r["method"]] = r["elapsed_s"] / max(1, r["tokens"])
        for job in self.jobs:
            missing = len(missing_repetitions(records, job))
            self._left[job.key] = missing + bool(missing)

    def affordable(self, job: Job) -> bool:
        """Return False if the job would end after the budget; it is then left out of this run.

        Its time follows from the same method at another N, by the tokens. A job whose method was not seen yet is
        always begun.
        """
        budget = self.settings.budget_minutes
        spent = time.monotonic() - self._began
        expected = self._left[job.key] * job.tokens * self._pace.get((job.section, job.method), 0.0)
        if budget is None or spent + expected <= 60 * budget:
            return True
        say(f"{label(job)}: not run, would take {expected / 60:.0f} min (budget {budget:g} min)")
        self._left[job.key] = 0
        return False

    def done(self, job: Job, measured: Measured, repetition: int, elapsed: float) -> None:
        """Note and print a measurement that took `elapsed` seconds with everything around it."""
        self._pace[job.section, job.method] = elapsed / max(1, job.tokens)
        self._left[job.key] -= 1
        which = f"{repetition}/{self.settings.repetitions}" if repetition else "warm-up"
        cost = ""
        if job.base != MATMUL:
            cpu, wall = measured.cpu / measured.rows, measured.wall / measured.rows
            cost = f": {cpu:.3g} s CPU per row, {wall:.3g} s wall, {measured.memory.peak / 2**30:.2f} GiB"
        say(f"{label(job)} {which}{cost}; {self._time_left()}")

    def ended(self, job: Job) -> None:
        """Record that a job will not be measured any further."""
        self._left[job.key] = 0

    def _time_left(self) -> str:
        """Return the expected time of the remaining measurements; unmeasured methods count as the slowest."""
        slowest = max(self._pace.values())
        pace = {j.key: self._pace.get((j.section, j.method), slowest) for j in self.jobs}
        seconds = sum(self._left[j.key] * j.tokens * pace[j.key] for j in self.jobs)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
