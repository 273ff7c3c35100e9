"""A bit flipped in, or bytes cut from, files of a finished run; the same command must end with the run's results."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from command import prefrec
from prefrec.files import read_json
from prefrec.runs.stage import STAGE_FILE
from reliability.children import call
from reliability.whole_runs import STAGES, arguments, differences

WAYS = ("flipped", "cut")


def damage_files(recipe: Path, folder: Path, whole: Path, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Damage each file of copies of `whole` in each way, in random order; yield the case and what was lost."""
    rng = random.Random(seed)
    cases = [(file, way) for file in _files(whole) for way in WAYS]
    for number, (file, way) in enumerate(rng.sample(cases, len(cases))):
        run = folder / f"damaged-{number}"
        yield f"{file} {way}", damage_run(recipe, run, whole, {file: way}, rng)
        shutil.rmtree(run)


def damage_run(recipe: Path, run: Path, whole: Path, damages: Mapping[str, str], rng: random.Random) -> list[str]:
    """Damage files of a copy of the run `whole`, run the same command again, and return what was lost.

    What a stage or a ranker made, and is damaged, must be named in a warning.
    """
    shutil.copytree(whole, run)
    for file, way in damages.items():
        _damage(run / file, way, rng)
    again = call(prefrec, *arguments(recipe, run))
    if again.code:
        return [again.err.strip()]
    silent = [f for f in damages if f in _sealed(whole) and Path(f).name not in again.err]
    return differences(run, whole) + [f"{file} is damaged without a word" for file in silent]


def _damage(file: Path, way: str, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    if way == "cut":
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _files(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.stat().st_size)


def _sealed(run: Path) -> set[str]:
    """Return the files whose digests the run holds."""
    made = {f"{stage}/{file}" for stage in STAGES for file in read_json(run / stage / STAGE_FILE)["files"]}
    return made | {str(p.relative_to(run)) for p in run.glob("predictions/*.parquet")}
