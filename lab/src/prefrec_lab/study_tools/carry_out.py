"""Run a study: one resumable run per seed, then the analysis and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefrec.console import say
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.files import read_json
from prefrec.pipeline.checks import check_rows
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.prepare import PrepareStage
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe, load_recipe
from prefrec_lab.study_tools.study import Study
from prefrec_lab.study_tools.write import STUDY_FILE, write_study

RUNS = "runs"
"""Folder, beside those of the studies, with one run per seed that all studies share."""


def base_recipe(study: Study, path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in `path`, or the package's own in the size of the study."""
    if path is not None:
        return load_recipe(path, overrides)
    with as_file(files("prefrec_lab.studies") / study.base) as shipped:
        return load_recipe(shipped, [*study.overrides, *overrides])


def carry_out(
    study: Study, base: Recipe, seeds: Sequence[int], out: Path, others: Sequence[Recipe] = ()
) -> dict[str, Any]:
    """Run what a study needs and write OUT/NAME; return the content of its study.json.

    The runs are in OUT/runs/seed-S. All studies of OUT share them, so that equal data, SFT and alignments are made
    once. Finished stages are skipped, interrupted ones continue. A study that makes its runs in its own way, or from
    a recipe of its own, has them in OUT/runs/NAME-seed-S. With other data than the base recipe's, the name of the
    source stands before seed-S; a study of one data set then writes to OUT/NAME-SOURCE.

    Args:
        seeds: one per run; the test rows and their candidates are the same (`data.seed`).
        others: the base recipe on other data sets. A study that compares data sets adds them; any other study takes
            one, in place of the base recipe.

    Raises:
        ConfigError: no seed, or one twice; more or fewer data sets than the study takes, or one twice; or the folder
            holds the study's outcome on other data.
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
        (seed, checked_recipe(recipe.model_dump(mode="json") | {"seed": seed}), _run_folder(study, out, source, seed))
        for seed in seeds
        for recipe, source in recipes
    ]
    if study.many_data:  # check all data sets before the first is trained on
        for _, seeded, folder_of_run in plans[: len(recipes)]:
            _check_data(study, seeded, folder_of_run)
    for seed, seeded, folder_of_run in plans:
        say(f"[bold]{study.name}, seed {seed}[/bold]: {folder_of_run}")
        runs.append(study.make(seeded, folder_of_run) if study.make else _made(study, seeded, folder_of_run))
    return _analyse(study, runs, folder)


def _run_folder(study: Study, out: Path, source: str, seed: int) -> Path:
    """Return the folder of a run; `source` is empty for the data of the base recipe."""
    parts = ("" if study.shares_runs else study.name, source, f"seed-{seed}")
    return out / RUNS / "-".join(part for part in parts if part)


def _outcome_folder(study: Study, out: Path, apart: str = "") -> Path:
    """Return the folder of an outcome; `apart` is the source of other data than the recipe's (`_in_place`)."""
    return out / (f"{study.name}-{apart}" if apart else study.name)


def _refuse_other_data(folder: Path, recipes: Sequence[Recipe]) -> None:
    """Raise ConfigError if `folder` has the study's outcome on other data than these recipes."""
    recipes_before = read_json(folder / STUDY_FILE).get("recipes", [])
    earlier = {_data_key(r["data"]) for r in recipes_before if "data" in r}
    if earlier and earlier != {_data_key(r.model_dump(mode="json")["data"]) for r in recipes}:
        names = ", ".join(sorted(" ".join(filter(None, key)) for key in earlier))
        raise ConfigError(
            f"{folder} holds what the study found on other data ({names}): name another --out, or move it away"
        )


def _data_key(data: dict[str, Any]) -> tuple[str, ...]:
    """Return what identifies data: the source, and the paths of its files."""
    files = (data.get(field) for field in ("path", "interactions", "items"))
    return data["source"], *(str(Path(file).resolve()) if file else "" for file in files)


def _in_place(study: Study, base: Recipe, others: Sequence[Recipe]) -> tuple[Recipe, str]:
    """Return the recipe on the other data if any are named, and their source; "" for the recipe's own data.

    Raises:
        ConfigError: several data sets are named, but the study takes one.
    """
    if len(others) > 1:
        raise ConfigError(f"study {study.name} takes one data set, got {', '.join(o.data.source for o in others)}")
    if not others or others[0].data == base.data:
        return base, ""
    return others[0], others[0].data.source


def _other_data(study: Study, base: Recipe, others: Sequence[Recipe]) -> list[Recipe]:
    """Return the other data sets; the base's own, named again without a path, does not count."""
    source = base.data.source
    own = ((source, None, None), (source, base.data.path, base.data.interactions))
    different = [o for o in others if (o.data.source, o.data.path, o.data.interactions) not in own]
    sources = [source, *(o.data.source for o in different)]
    if not different:
        raise ConfigError(
            f"study {study.name} compares data sets, but there is only {source}: name others with --data, or runs "
            "with --run"
        )
    if len(set(sources)) < len(sources):
        raise ConfigError(
            f"--data: two data sets have the same source ({', '.join(sources)}): run each apart, then use --run"
        )
    return different


def _ready(study: Study, recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe to run, after preparing its data; an earlier recipe in the folder stays until then."""
    return study.vary(recipe, PrepareStage(recipe, folder / "data").prepared())


def _check_data(study: Study, recipe: Recipe, folder: Path) -> None:
    """Prepare the data of a run, and check that they have the rows that it trains on."""
    say(f"[bold]{study.name}[/bold]: data of {recipe.data.source}")
    check_rows(_ready(study, recipe, folder), read_prepared(folder / "data"))


def _made(study: Study, recipe: Recipe, folder: Path) -> Run:
    ready = _ready(study, recipe, folder)
    return run_recipe(ready, folder, until="evaluate", equal_logs=study.equal_logs)


def analyse_runs(study: Study, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Answer a study's question from existing runs and write OUT/NAME; return the content of its study.json.

    Raises:
        ConfigError: the study needs runs of its own, or OUT/NAME holds its outcome on other data.
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
