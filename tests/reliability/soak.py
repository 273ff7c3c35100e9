"""The long form of the reliability tests, in one table: `python -m reliability --minutes 50`."""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import torch
from rich.console import Console
from rich.table import Table

from generated_requests import PATHS, ask
from prefrec.console import say, track
from reliability import answers, clocks, crashes, disks, memory, parts
from reliability.children import call
from reliability.corpus import CASES, Place, make_place, verdict
from reliability.damage import damage_files
from reliability.fuzzing import fuzz
from reliability.kills import kill_runs
from reliability.parsers import PARSERS
from reliability.parts import Part
from reliability.properties import hold
from reliability.readers import ask_damaged
from reliability.whole_runs import END, PARTS, make_recipe, undisturbed
from reliability.works import WORKS, Update, Work
from served_run import add_rankers, write_run
from tiny import bpe_tokenizer

KILLS = 20
ERRORS = (Exception, BaseExceptionGroup)
"""What a part may raise; schemathesis raises groups."""
SIZES = ("16k", "48k", "100k", "160k", "200k", "240k", "280k", "320k")
ROUND = 200
"""Examples between two looks at the clock."""

START_S, SHORTEST_S = 15, 10
"""Seconds that the fuzzer takes to start, and those that it has at the least."""

SHARES = {
    "kills": ("killed at random moments", 6),
    "crashes": ("killed right after each change of a file", 5),
    "update": ("update, killed likewise", 4),
    "update-kills": ("update, killed at random moments", 4),
    "tune": ("tune, killed likewise", 4),
    "recommend": ("recommend --all-users, killed likewise, its parts flipped", 3),
    "damage": ("damaged files and unsealed stages of a run, made again", 4),
    "readers": ("damaged files, unsealed stages, data and exports, read", 4),
    "disks": ("full and read-only disks", 3),
    "verbs": ("verbs on full disks, and again when there is room", 4),
    "clocks": ("clocks that jump by a day or years, of a run and a server", 4),
    "update-clocks": ("clocks of an update, likewise", 2),
    "batches": ("batches of histories and the default, all rankers of a run", 2),
    "mixed": ("a run replaced under an open recommender", 1),
    "threads": ("16 threads on one recommender", 1),
    "clients": ("clients that do not read or do not end", 2),
    "memory": ("a run on 20,000 items, its peak memory", 3),
    "configs": ("hostile configurations", 2),
    "inputs": ("malformed inputs", 2),
    "bytes": ("bytes of any kind (hypothesis)", 2),
    "requests": ("requests of the OpenAPI (schemathesis)", 2),
    "fuzz": ("fuzzed file readers (atheris)", 6),
}
"""Parts of the soak, as the command line and the table call them, and their minutes of 50, or in proportion."""

NAMES = {name: title for name, (title, _) in SHARES.items()}
MINUTES = {name: minutes for name, (_, minutes) in SHARES.items()}

CRASHED = ("crashes", "update", "tune", "recommend")
"""Parts that kill a command after each change (`crashes`: the command `run`)."""


@dataclass
class Clock:
    """Shares of the time that is left."""

    ends: float

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.ends - time.monotonic())

    def share(self, part: float) -> float:
        """The moment at which a share of what is left is used up."""
        return time.monotonic() + part * self.left


def soak(minutes: float, folder: Path, seed: int, only: Collection[str] = tuple(NAMES)) -> list[Part]:
    """Parts of `NAMES`, in `folder`, in about so many minutes; facts of a part tell what could not be done."""
    clock = Clock(time.monotonic() + 60 * minutes)
    torch.set_num_threads(1)
    recipe, place = make_recipe(folder / "recipe"), cache(lambda: make_place(folder / "corpus"))
    whole = cache(lambda: _whole(recipe, folder))
    done: list[Part] = []

    def do(name: str, work: Callable[[Part], None]) -> None:
        if name not in only:
            return
        part, start = Part(NAMES[name]), time.monotonic()
        say(f"[bold]{part.name}[/bold], {clock.left / 60:.1f} minutes left")
        try:
            work(part)
        except ERRORS as e:  # one part that cannot be done does not end the others
            part.lost.append(f"the part ended with {type(e).__name__}: {e}")
        part.seconds = round(time.monotonic() - start, 1)
        done.append(part)

    def until(name: str) -> float:
        left = [part for part in list(NAMES)[list(NAMES).index(name) :] if part in only]
        return clock.share(MINUTES[name] / sum(MINUTES[part] for part in left))

    do("kills", lambda part: _kills(part, Work(recipe, folder), folder / "kills", seed, until("kills")))
    update = Update(recipe, folder / "update-kills")
    do("update-kills", lambda part: _kills(part, update, update.folder, seed, until("update-kills")))
    for name in CRASHED:
        do(name, lambda part, name=name: _crashes(part, recipe, folder, seed, until(name), name))
    do("damage", lambda part: part.count(damage_files(recipe, folder / "damage", whole(), seed), until("damage")))
    do("readers", lambda part: part.count(ask_damaged(whole(), folder / "readers", seed), until("readers")))
    do("disks", lambda part: _disks(part, recipe, folder, whole, until("disks")))
    do("verbs", lambda part: _verbs(part, recipe, folder, whole, seed, until("verbs")))
    do("clocks", lambda part: _clocks(part, recipe, folder / "clocks", seed, until("clocks"), Work))
    do(
        "update-clocks",
        lambda part: _clocks(part, recipe, folder / "update-clocks", seed, until("update-clocks"), Update),
    )
    do("batches", lambda part: _batches(part, whole(), folder / "batches", seed, until("batches")))
    do("mixed", lambda part: _mixed(part, folder / "mixed", seed, until("mixed")))
    do("threads", lambda part: parts.threads(part, folder / "threads", until("threads")))
    do("clients", lambda part: parts.clients(part, place().run, folder / "clients", until("clients")))
    do("memory", lambda part: memory.within_memory(part, folder / "memory"))
    do("configs", lambda part: parts.configs(part, folder / "configs", seed, until("configs")))
    do("inputs", lambda part: _corpus(part, place(), folder))
    do("bytes", lambda part: _bytes(part, folder, seed, until("bytes")))
    do("requests", lambda part: _requests(part, place(), seed, until("requests")))
    do("fuzz", lambda part: _fuzz(part, folder / "fuzz", seed, clock))
    return done


def _kills(part: Part, work: Work, folder: Path, seed: int, until: float) -> None:
    hit = dict.fromkeys(PARTS, 0)
    part.facts = {"hit": hit, "planned": KILLS}
    folder.mkdir(exist_ok=True)
    for killed in kill_runs(work, folder, KILLS, seed):
        part.tried += 1
        if killed.hit:
            hit[killed.stage] += 1
        elif not killed.lost:
            part.missed += 1
        if killed.lost:
            part.lost.append(f"killed in {killed.stage}, at {killed.moment:.0%}: {'; '.join(killed.lost)}")
        if time.monotonic() > until:
            break


def _crashes(part: Part, recipe: Path, folder: Path, seed: int, until: float, work: str = "crashes") -> None:
    if reason := crashes.why_not():
        part.facts = {"not done": reason}
        return
    command = WORKS.get(work, Work)
    hit, changes = dict.fromkeys(command.parts, 0), Counter[str]()
    part.facts = {"hit": hit}
    with contextlib.closing(crashes.crash_runs(recipe, folder / work, seed, command)) as tried:
        for crash in tried:
            part.tried += 1
            hit[crash.stage] += 1
            changes[crash.change.split()[0]] += 1
            part.facts |= {"points": crash.points, "changes": dict(changes)}
            if crash.lost:
                part.lost.append(f"after change {crash.point}, {crash.change}: {'; '.join(crash.lost)}")
            if time.monotonic() > until:
                break


def _whole(recipe: Path, folder: Path) -> Path:
    """Return the undisturbed run, which is made if the kills have not made it."""
    whole = folder / "kills" / "undisturbed"
    if not whole.exists():
        undisturbed(recipe, whole)
    return whole


def _disks(part: Part, recipe: Path, folder: Path, whole: Callable[[], Path], until: float) -> None:
    if reason := disks.why_not():
        part.facts = {"not done": reason}
        return
    hit = Counter[str]()
    copy = shutil.copytree(whole(), folder / "read-only" / "run")
    part.lost += call(disks.read_only, disks.writers(recipe, copy), copy)
    part.lost += call(disks.full_disk_over_data, disks.shop_options(recipe), folder / "older" / "data")
    part.tried += len(disks.writers(recipe, copy)) + 1
    for size in SIZES:
        if time.monotonic() > until:
            break
        stage, wrong = call(disks.full_disk, recipe, folder / f"disk-{size}" / "run", whole(), size)
        hit[stage] += 1
        part.tried += 1
        part.missed += stage == END and not wrong
        part.lost += [f"disk of {size}, full in {stage}: {w}" for w in wrong]
    part.facts = {"full in": dict(hit)}


def _verbs(part: Part, recipe: Path, folder: Path, whole: Callable[[], Path], seed: int, until: float) -> None:
    if reason := disks.why_not():
        part.facts = {"not done": reason}
        return
    for verb in random.Random(seed).sample(disks.VERBS, len(disks.VERBS)):
        wrong = call(disks.verb_on_full_disk, verb, recipe, whole(), folder / "verbs" / verb)
        part.tried += len(disks.ROOMS)
        part.lost += [f"{verb}: {what}" for what in wrong]
        if time.monotonic() > until:
            break


def _clocks(part: Part, recipe: Path, folder: Path, seed: int, until: float, work: type[Work]) -> None:
    if reason := crashes.why_not():
        part.facts = {"not done": reason}
        return
    folder.mkdir()
    with contextlib.closing(clocks.jumps(recipe, folder, seed, work)) as tried:
        part.count(((f"{j.days} days, {j.kind}", j.lost) for j in tried), until)


def _batches(part: Part, whole: Path, folder: Path, seed: int, until: float) -> None:
    part.count([("the default", answers.wrong_default(whole))], until)
    part.count(answers.batches(add_rankers(write_run(folder, bpe_tokenizer())), seed), until)


def _mixed(part: Part, folder: Path, seed: int, until: float) -> None:
    runs = [add_rankers(write_run(folder / str(n), bpe_tokenizer(), n)) for n in range(2)]
    part.count(answers.mixed(runs, folder, seed), until)


def _corpus(part: Part, place: Place, folder: Path) -> None:
    for number, case in enumerate(track(CASES, "malformed inputs")):
        part.tried += 1
        why = verdict(case, place, folder / "cases" / str(number))
        part.lost += [f"{case.name}: {why}"] if why else []


def _bytes(part: Part, folder: Path, seed: int, until: float) -> None:
    broken: dict[str, str] = {}
    for number in _rounds(until):
        for parser in [p for p in PARSERS.values() if p.name not in broken]:
            place = folder / "bytes" / parser.name.replace(" ", "-")
            try:
                part.tried += sum(hold(parser, place, ROUND, random=seed + number))
            except BaseException as e:  # noqa: BLE001  # a panic of polars is no Exception
                broken[parser.name] = f"{parser.name}: {type(e).__name__}: {e} {getattr(e, '__notes__', '')}"
            if time.monotonic() > until and number:
                break
    part.lost = list(broken.values())
    part.facts = {"parsers": len(PARSERS)}


def _requests(part: Part, place: Place, seed: int, until: float) -> None:
    broken: dict[str, str] = {}
    for number in _rounds(until):
        for path in [p for p in PATHS if p not in broken]:
            try:
                part.tried += ask(place.app, path, ROUND // 4, random=seed + number)
            except ERRORS as e:
                broken[path] = f"{path}: {type(e).__name__}: {e}"
    part.lost = list(broken.values())
    part.facts = {"paths": len(PATHS)}


def _fuzz(part: Part, folder: Path, seed: int, clock: Clock) -> None:
    if importlib.util.find_spec("atheris") is None:
        part.facts = {"not done": "atheris is not installed: pip install atheris"}
        return
    found = fuzz(folder, max(SHORTEST_S, round(clock.left - START_S)), seed + 1)
    part.tried += found.inputs
    part.lost += [found.crash] if found.crash else []


def _rounds(until: float) -> Iterator[int]:
    """Numbers from 0, at least one, until the moment has come."""
    number = 0
    while not number or time.monotonic() < until:
        yield number
        number += 1


def table(parts: list[Part]) -> Table:
    """Cases tried, survived, lost; and how many proved nothing, where some did."""
    lost = sum(len(part.lost) for part in parts)
    shown = Table("part", title=f"{lost:,} lost" if lost else "Nothing lost", title_justify="left")
    for column in ("tried", "survived", "lost", "seconds"):
        shown.add_column(column, justify="right")
    for part in parts:
        survived = max(0, part.tried - len(part.lost) - part.missed)
        shown.add_row(_line(part), f"{part.tried:,}", f"{survived:,}", f"{len(part.lost):,}", f"{part.seconds:,.0f}")
    return shown


def _line(part: Part) -> str:
    """What a part is, and what of it a number cannot say."""
    notes = [str(part.facts["not done"])] if "not done" in part.facts else []
    points, hit = part.facts.get("points"), part.facts.get("hit")
    if points is not None:
        notes.append(f"of {points}")
    if isinstance(hit, dict):
        notes.append(f"{sum(hit.values())} hit: " + ", ".join(f"{name} {count}" for name, count in hit.items()))
    if part.missed:
        notes.append(f"{part.missed} proved nothing")
    return part.name + (f" ({'; '.join(notes)})" if notes else "")


def main() -> int:
    """Soak, print the table, write the JSON; 1 where something was lost."""
    options = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    options.add_argument("--minutes", type=float, default=50, help="about how long; default 50")
    options.add_argument("--seed", type=int, default=0, help="of the random moments and inputs")
    options.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="parts; default: all")
    options.add_argument("--out", type=Path, default=Path("runs/soak.json"), help="JSON to write")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        parts = soak(given.minutes, Path(folder), given.seed, given.only)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"minutes": given.minutes, "seed": given.seed, "python": platform.python_version()}
    about |= {"cpus": os.cpu_count(), "only": given.only}
    given.out.write_text(json.dumps(about | {"parts": [asdict(p) for p in parts]}, indent=2) + "\n", encoding="utf-8")
    out = Console()
    out.print(table(parts))
    for part in parts:
        for note in part.lost:
            out.print(f"lost, {part.name}: {note}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(p.lost for p in parts) else 0
