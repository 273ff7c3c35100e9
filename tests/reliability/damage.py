"""A bit flipped in, or bytes cut from, files of a finished run; the same command must end with the run's results."""

import os
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
UNSEALED = {
    "empty": "",
    "without files": '{"key": "k", "finished": true, "fimes": {}}',
    "no file": '{"key": "k", "finished": true, "files": {}}',
    "files of no kind": '{"key": "k", "finished": true, "files": []}',
    "unfinished": '{"key": "k", "finished": false, "files": {}}',
    "finished by a word": '{"key": "k", "finished": "yes", "files": {}}',
}
"""Contents of `stage.json` that say nothing about the files beside it."""


def damage_files(recipe: Path, folder: Path, whole: Path, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Damage each file of copies of `whole` in each way, in random order; yield the case and what was lost."""
    rng = random.Random(seed)
    cases: list[dict[str, str]] = [{file: way} for file in _files(whole) for way in (*WAYS, "lost")]
    # A stage that vouches for nothing, beside weights that changed.
    weights = {stage: f"{stage}/adapter/adapter_model.safetensors" for stage in STAGES[1:]}
    cases += [{weights[s]: "flipped", f"{s}/{STAGE_FILE}": way} for s in weights for way in UNSEALED]
    for number, damages in enumerate(rng.sample(cases, len(cases))):
        run = folder / f"damaged-{number}"
        yield ", ".join(map(" ".join, damages.items())), damage_run(recipe, run, whole, damages, rng)
        shutil.rmtree(run)


def damage_run(recipe: Path, run: Path, whole: Path, damages: Mapping[str, str], rng: random.Random) -> list[str]:
    """Damage files of a copy of the run `whole`, run the same command again, and return what was lost."""
    # Damage must be named in a warning; of a stage that vouches for nothing, its `stage.json`.
    shutil.copytree(whole, run)
    for file, way in damages.items():
        damage(run / file, way, rng)
    again = call(prefrec, *arguments(recipe, run))
    if again.code:
        return [again.err.strip()]
    unsealed = [Path(file).parent for file in damages if Path(file).name == STAGE_FILE]
    known = {file for file in _sealed(whole) if not any(stage in Path(file).parents for stage in unsealed)}
    # Predictions that are not there are made as at first, without a word.
    told = {file for file, way in damages.items() if not (way == "lost" and file.startswith("predictions/"))}
    silent = [file for file in damages if file in known & told and Path(file).name not in again.err]
    return differences(run, whole) + [f"{file} is damaged without a word" for file in silent]


def damage(file: Path, way: str, rng: random.Random) -> None:
    """Damage a file: flip a bit, cut it, remove it, put a pipe in its place, or write a text of `UNSEALED`."""
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    if way == "cut":
        file.write_bytes(content[:place])
    elif way == "flipped":
        content[place] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif way in UNSEALED:
        file.write_text(UNSEALED[way], encoding="utf-8")
    else:
        file.unlink()
        if way == "a pipe":
            os.mkfifo(file)


def _files(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.stat().st_size)


def _sealed(run: Path) -> set[str]:
    made = {f"{stage}/{file}" for stage in STAGES for file in read_json(run / stage / STAGE_FILE)["files"]}
    return made | {str(p.relative_to(run)) for p in run.glob("predictions/*.parquet")}
