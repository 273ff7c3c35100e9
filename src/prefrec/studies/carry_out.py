"""Carry out a study: a run a seed, each resumable, then the analysis and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefrec.console import say
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.pipeline.recipe import Recipe, load_recipe
from prefrec.pipeline.run import run_recipe
from prefrec.studies.runs import Run, open_run
from prefrec.studies.study import Study
from prefrec.studies.write import write_study

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
    with as_file(files("prefrec.studies") / study.base) as shipped:
        return load_recipe(shipped, [*study.overrides, *overrides])


def carry_out(
    study: Study, base: Recipe, seeds: Sequence[int], out: Path, others: Sequence[Recipe] = ()
) -> dict[str, Any]:
    """Run what a study needs and write OUT/NAME; returns the content of its study.json.

    The runs lie in OUT/runs/seed-S, which all studies of OUT share: data, pre-training, SFT and alignments that are
    the same are made once. Stages that are finished are skipped, interrupted ones go on where they stopped. A study
    that makes its runs in its own way, or from a recipe of its own, has them in OUT/runs/NAME-seed-S; those on other
    data are in OUT/runs/SOURCE-seed-S.

    Args:
        study: the question.
        base: recipe that the study varies.
        seeds: of the runs, each its own; the test rows and their candidates are the same (`data.seed`).
        out: folder of the studies.
        others: the base recipe on other data sets, for a study that compares several.

    Raises:
        ConfigError: no seed, or the same twice; more or fewer data sets than the study takes, or the same twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: expected one or more different numbers, got {list(seeds)}")
    others = _other_data(study, base, others)
    runs = []
    for seed in seeds:
        own = f"seed-{seed}" if study.shares_runs else f"{study.name}-seed-{seed}"
        folders = [(base, own), *((o, f"{o.data.source}-seed-{seed}") for o in others)]
        for recipe, name in folders:
            folder = out / RUNS / name
            say(f"[bold]{study.name}, seed {seed}[/bold]: {folder}")
            seeded = Recipe.model_validate(recipe.model_dump(mode="json") | {"seed": seed})
            runs.append(study.make(seeded, folder) if study.make else _made(study, seeded, folder))
    return _analyse(study, runs, out)


def _other_data(study: Study, base: Recipe, others: Sequence[Recipe]) -> list[Recipe]:
    """The other data sets; the base's own, named once more without a path, is not another."""
    known = base.data.source
    own = ((known, None, None), (known, base.data.path, base.data.interactions))
    found = [o for o in others if (o.data.source, o.data.path, o.data.interactions) not in own]
    sources = [known, *(o.data.source for o in found)]
    if found and not study.many_data:
        raise ConfigError(f"study {study.name} takes one data set, got {', '.join(sources)}")
    if study.many_data and not found:
        raise ConfigError(
            f"study {study.name} compares data sets, and there is only {known}: name others by --data, or runs "
            "by --run"
        )
    if len(set(sources)) < len(sources):
        raise ConfigError(
            f"--data: two data sets of one source ({', '.join(sources)}); run them apart, then use --run"
        )
    return found


def _made(study: Study, recipe: Recipe, folder: Path) -> Run:
    run_recipe(recipe, folder, until="prepare")
    run_recipe(study.vary(recipe, read_prepared(folder / "data")), folder, until="evaluate")
    return open_run(folder)


def analyse_runs(study: Study, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Answer a study's question from runs that there are, and write OUT/NAME; returns its study.json.

    Raises:
        ConfigError: the study needs runs of its own.
        DataError: a folder holds no evaluated run.
    """
    if not study.reads_any_run:
        raise ConfigError(f"study {study.name} varies the recipe: it makes its own runs, leave --run out")
    return _analyse(study, [open_run(f) for f in folders], out)


def _analyse(study: Study, runs: Sequence[Run], out: Path) -> dict[str, Any]:
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    return write_study(study, runs, study.analyse(runs, folder), folder)
