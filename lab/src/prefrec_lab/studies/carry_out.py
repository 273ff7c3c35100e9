"""Carry out a study: a run a seed, each resumable, then the analysis and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefrec.console import say
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.recipe import Recipe, checked_recipe, load_recipe
from prefrec.pipeline.rows import check_rows
from prefrec.pipeline.run import prepare_stage, run_recipe
from prefrec_lab.studies.study import Study
from prefrec_lab.studies.write import STUDY_FILE, write_study

RUNS = "runs"
"""Folder, beside those of the studies, with one run a seed that all studies share."""


def base_recipe(study: Study, path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, or the one that comes with the package, in the study's own size.

    Args:
        study: whose.
        path: of a recipe file; None: the package's own.
        overrides: as for `load_recipe`.
    """
    if path is not None:
        return load_recipe(path, overrides)
    with as_file(files("prefrec_lab.studies") / study.base) as shipped:
        return load_recipe(shipped, [*study.overrides, *overrides])


def carry_out(
    study: Study, base: Recipe, seeds: Sequence[int], out: Path, others: Sequence[Recipe] = ()
) -> dict[str, Any]:
    """Run what a study needs and write OUT/NAME; returns the content of its study.json.

    The runs lie in OUT/runs/seed-S, which all studies of OUT share: data, SFT and alignments that are
    the same are made once. Stages that are finished are skipped, interrupted ones go on where they stopped. A study
    that makes its runs in its own way, or from a recipe of its own, has them in OUT/runs/NAME-seed-S. On other data
    than the base recipe's SOURCE stands before seed-S; a study of one data set is then written to OUT/NAME-SOURCE.

    Args:
        study: the question.
        base: recipe that the study varies.
        seeds: of the runs, each its own; the test rows and their candidates are the same (`data.seed`).
        out: folder of the studies.
        others: the base recipe on other data sets: further ones for a study that compares several, else one that
            takes the place of the base recipe.

    Raises:
        ConfigError: no seed, or the same twice; more or fewer data sets than the study takes, or the same twice; the
            folder holds what the study found on other data.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: expected one or more different numbers, got {list(seeds)}")
    if study.many_data:
        apart, others = "", _other_data(study, base, others)
    else:
        (base, apart), others = _in_place(study, base, others), ()
    folder = _outcome_folder(study, out, apart)
    _refuse_other_data(folder, [base, *others])
    runs = []
    recipes = [(base, apart), *((o, o.data.source) for o in others)]
    plans = [
        (seed, checked_recipe(recipe.model_dump(mode="json") | {"seed": seed}), _place(study, out, source, seed))
        for seed in seeds
        for recipe, source in recipes
    ]
    if study.many_data:  # none is trained on before all have been looked at
        for _, seeded, place in plans[: len(recipes)]:
            _look_at(study, seeded, place)
    for seed, seeded, place in plans:
        say(f"[bold]{study.name}, seed {seed}[/bold]: {place}")
        runs.append(study.make(seeded, place) if study.make else _made(study, seeded, place))
    return _analyse(study, runs, folder)


def _place(study: Study, out: Path, source: str, seed: int) -> Path:
    """Where a run of a study lies; `source` where its data are others than the recipe's."""
    parts = ("" if study.shares_runs else study.name, source, f"seed-{seed}")
    return out / RUNS / "-".join(part for part in parts if part)


def _outcome_folder(study: Study, out: Path, apart: str = "") -> Path:
    """Where a study's outcome lies; `apart` is the source of other data than the recipe's (`_in_place`)."""
    return out / (f"{study.name}-{apart}" if apart else study.name)


def _refuse_other_data(folder: Path, recipes: Sequence[Recipe]) -> None:
    """Let no outcome take the place of one on other data.

    Raises:
        ConfigError: the study in `folder` was made on others than these.
    """
    known = read_json(folder / STUDY_FILE)
    recipes_before = known.get("recipes", []) if isinstance(known, dict) else []
    before = {_place_of(r["data"]) for r in recipes_before if "data" in r}
    if before and before != {_place_of(r.model_dump(mode="json")["data"]) for r in recipes}:
        told = ", ".join(sorted(" ".join(filter(None, place)) for place in before))
        raise ConfigError(
            f"{folder} holds what the study found on other data ({told}): name another --out, or move it away"
        )


def _place_of(data: dict[str, Any]) -> tuple[str, ...]:
    """Which data these are: the source, and where its files lie."""
    files = (data.get(field) for field in ("path", "interactions", "items"))
    return data["source"], *(str(Path(file).resolve()) if file else "" for file in files)


def _in_place(study: Study, base: Recipe, others: Sequence[Recipe]) -> tuple[Recipe, str]:
    """The recipe on the data that are named in place of its own, and their source, "" where they are its own.

    Raises:
        ConfigError: the study takes one data set, and several are named.
    """
    if len(others) > 1:
        raise ConfigError(f"study {study.name} takes one data set, got {', '.join(o.data.source for o in others)}")
    if not others or others[0].data == base.data:
        return base, ""
    return others[0], others[0].data.source


def _other_data(study: Study, base: Recipe, others: Sequence[Recipe]) -> list[Recipe]:
    """The other data sets; the base's own, named once more without a path, is not another."""
    known = base.data.source
    own = ((known, None, None), (known, base.data.path, base.data.interactions))
    found = [o for o in others if (o.data.source, o.data.path, o.data.interactions) not in own]
    sources = [known, *(o.data.source for o in found)]
    if not found:
        raise ConfigError(
            f"study {study.name} compares data sets, and there is only {known}: name others by --data, or runs "
            "by --run"
        )
    if len(set(sources)) < len(sources):
        raise ConfigError(
            f"--data: two data sets of one source ({', '.join(sources)}); run them apart, then use --run"
        )
    return found


def _ready(study: Study, recipe: Recipe, folder: Path) -> Recipe:
    """What a run is to carry out, once its data are prepared; the recipe that lies there stays until then."""
    return study.vary(recipe, prepare_stage(recipe, folder / "data"))


def _look_at(study: Study, recipe: Recipe, folder: Path) -> None:
    """Prepare the data of a run, and see that they have the rows that it trains on."""
    say(f"[bold]{study.name}[/bold]: data of {recipe.data.source}")
    check_rows(_ready(study, recipe, folder), read_prepared(folder / "data"))


def _made(study: Study, recipe: Recipe, folder: Path) -> Run:
    run_recipe(_ready(study, recipe, folder), folder, until="evaluate")
    return open_run(folder)


def analyse_runs(study: Study, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Answer a study's question from runs that there are, and write OUT/NAME; returns its study.json.

    Raises:
        ConfigError: the study needs runs of its own, or OUT/NAME holds what it found on other data.
        DataError: a folder holds no evaluated run.
    """
    if not study.reads_any_run:
        raise ConfigError(f"study {study.name} varies the recipe: it makes its own runs, leave --run out")
    runs = [open_run(f) for f in folders]
    folder = _outcome_folder(study, out)
    _refuse_other_data(folder, [run.recipe for run in runs])
    return _analyse(study, runs, folder)


def _analyse(study: Study, runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return write_study(study, runs, study.analyse(runs, folder), folder)
