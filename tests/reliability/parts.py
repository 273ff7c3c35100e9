"""A part of the soak as a line of its table, and the parts that ask readers, threads, a server and configurations."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from reliability.children import call
from reliability.clients import beside_hostile, served
from reliability.configs import try_configs
from reliability.threads import KINDS, ask_together, opener, questions_of
from tiny import bpe_tokenizer

CONFIGS_S = 120.0
"""Seconds that one process reads configurations."""


@dataclass
class Part:
    """A line of the table: what was done, how often, and in how many seconds."""

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)  # a note for each case that did not end as it should
    missed: int = 0  # cases that proved nothing, as a kill after the run's end: neither lost nor survived
    facts: dict[str, object] = field(default_factory=dict)  # more about it
    seconds: float = 0.0

    def count(self, cases: Iterable[tuple[str, list[str]]], until: float) -> None:
        """Take cases and what each of them lost, until the moment has come."""
        for case, lost in cases:
            self.tried += 1
            self.lost += [f"{case}: {'; '.join(lost)}"] if lost else []
            if time.monotonic() > until:
                break


def threads(part: Part, folder: Path, until: float) -> None:
    """Let threads ask recommenders of all kinds that were just opened; a case is an answer."""
    openers = {kind: opener(kind, folder / str(n), bpe_tokenizer()) for n, kind in enumerate(KINDS)}
    questions = {kind: questions_of(opened()) for kind, opened in openers.items()}
    want = {kind: [ask(rec) for ask in questions[kind]] for kind, rec in ((k, o()) for k, o in openers.items())}
    rounds = 0
    while not rounds or time.monotonic() < until:
        rounds += 1
        for kind, opened in openers.items():
            given = ask_together(opened(), questions[kind])
            part.tried += len(given)
            wrong = sum(answer != want[kind][i] for i, answer in given)
            part.lost += [f"{kind}: {wrong} of {len(given)} answers are other ones"] if wrong else []
    part.facts = {"rounds": rounds, "kinds": list(KINDS)}


def clients(part: Part, run: Path, folder: Path, until: float) -> None:
    """Serve a run beside clients that do not read or do not end; a case is a connection or a question."""
    with served(run, folder) as (port, process):
        while not part.tried or time.monotonic() < until:
            tried, wrong = beside_hostile(port, process)
            part.tried += tried
            part.lost += wrong


def configs(part: Part, folder: Path, seed: int, until: float) -> None:
    """Read hostile configurations, in processes with little memory."""
    refused = 0
    while not part.tried or time.monotonic() < until:
        seconds = min(CONFIGS_S, max(10.0, until - time.monotonic()))
        place = folder / str(part.tried)
        try:
            tried, wrong, more = call(try_configs, place, seed + part.tried, seconds)
        except AssertionError as e:  # the process ended
            part.tried += 1
            part.lost.append(f"{(place / 'case').read_text(encoding='utf-8')[:500]}: {e}")
            continue
        part.tried, refused = part.tried + tried, refused + more
        part.lost += wrong
    part.facts = {"refused": refused}
