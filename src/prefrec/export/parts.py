"""Export a blend or a baseline as a folder: the parts of its run that it needs to answer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape

from prefrec.console import say, warn
from prefrec.data import PreparedData, read_prepared, write_prepared
from prefrec.data.rows import RankingExample
from prefrec.files import write_text
from prefrec.pipeline.opened import Run
from prefrec.pipeline.plan import planned
from prefrec.recipe import dump_recipe, load_recipe, map_files
from prefrec.runs.served import write_served
from prefrec.runs.stage import read_state, stage_key
from prefrec.sections import AnswersSection, ModelSection
from prefrec.stages.base import RankerStage

RECIPE, DATA, PROMPT = "recipe.yaml", "data", "prompt.jinja2"
ABOUT, ITEMS = "prefrec.json", "items.parquet"
"""Files of an export: settings for `Recommender.from_pretrained`, and the catalogue."""
EXPORTED = "exported"
"""Key in the protocol of exported data, whose user ids are replaced by numbers."""


def about_key(about: dict[str, Any]) -> str:
    """Return a hash of `ABOUT` without the name of the base, which may change if the base moves."""
    return stage_key(about=about | {"model": about["model"] | {"name": ""}})


def write_parts(run: Run, rankers: Sequence[str], out: Path) -> list[str]:
    """Write what rankers of a run need to answer to the folder `out`; return the names of the rankers in it.

    The folder gets the recipe without paths of this machine, the weights of the stages that the rankers query, the
    items, and the interactions that baselines count. User ids are replaced by numbers. A warning says so.
    """
    queried = list(dict.fromkeys(name for ranker in rankers for name in run.plan.queried(ranker)))
    paths = map_files(run.recipe.data, lambda file: Path(file.name))
    changes = {"data": run.recipe.data.model_copy(update=paths), "model": _unplaced(run.recipe.model), "update": None}
    recipe = run.recipe.model_copy(update=changes)
    write_text(out / RECIPE, dump_recipe(recipe))
    data = without_names(run.data)
    write_prepared(data, out / DATA)
    for name in queried:
        made = [stage.folder for stage in run.plan.stages([name]) if stage.makes_files]
        for folder in made[-1:]:  # with a refit, what has learnt validation interactions, too
            for file in read_state(folder).get("files", {}):
                target = out / folder.relative_to(run.folder) / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, target)
    if run.plan.served is not None:
        write_served(out, [name for name in queried if name in run.plan.served])
    if left_out := [name for name in _named(run, rankers) if name not in queried]:
        say(escape(f"without {', '.join(left_out)}, which {' and '.join(rankers)} left out and does not ask"))
    rows, users = len(data.train_interactions), data.train_interactions["user_id"].n_unique()
    warn(
        escape(
            f"{' and '.join(rankers)}: the export contains the log, {rows:,} interactions of {users:,} users, with "
            "numbers instead of user ids"
        )
    )
    return queried


def _named(run: Run, rankers: Sequence[str]) -> list[str]:
    """Return the rankers of the run that these name in their settings, if they query them."""
    asking = [ranker for ranker in rankers if ranker in run.plan.names and run.stage(ranker).queries]
    named = [need for ranker in asking for need in run.recipe.needs[ranker] if need in run.plan.names]
    return list(dict.fromkeys(named))


def _unplaced(model: ModelSection) -> ModelSection:
    """Return the section with names in place of the paths of a base and of templates, which `open_parts` ignores."""
    name = Path(model.name).name if Path(model.name).expanduser().is_dir() else model.name
    templates = [Path(file).name if Path(file).is_file() else file for file in model.templates]
    return model.model_copy(update={"name": name, "templates": templates})


def open_parts(
    folder: Path, rankers: Sequence[str], base: str
) -> tuple[PreparedData, list[RankerStage], AnswersSection]:
    """Return the data, these rankers and the rules of answers in a folder of `write_parts`.

    `base` is the base of its language models.
    """
    recipe, data = load_recipe(folder / RECIPE), read_prepared(folder / DATA)
    # Item-ID tokens need no template, and the run may have had one of its own.
    templates = [str(folder / PROMPT)] if recipe.model.answers == "titles" else ModelSection().templates
    model = recipe.model.model_copy(update={"name": base, "templates": templates})
    recipe = recipe.model_copy(update={"model": model})
    plan = planned(recipe, data, folder)
    return data, [plan.stage(ranker) for ranker in rankers], recipe.answers


def without_names(data: PreparedData) -> PreparedData:
    """Return the data that baselines count, without training and test examples, and with numbers as user ids."""
    names = pl.concat([log["user_id"] for log in data.logs]).unique().sort().to_list()
    names = [*names, *sorted({e.user_id for e in data.validation}.difference(names))]
    width = len(str(len(names)))
    numbers = {
        name: f"{n:0{width}}" for n, name in enumerate(names)
    }  # in the same order, because the log is sorted by user

    def renamed(log: pl.DataFrame) -> pl.DataFrame:
        kept = [c for c in log.columns if c in ("user_id", "item_id", "timestamp")]
        return log.select(kept).with_columns(pl.col("user_id").replace_strict(numbers, return_dtype=pl.String))

    later = None if data.held_out_interactions is None else renamed(data.validation_interactions)
    unmeasured = None if data.unmeasured is None else renamed(data.unmeasured)
    validation: list[RankingExample] = [replace(e, user_id=numbers[e.user_id]) for e in data.validation]
    config: dict[str, Any] = {"history_length": data.history_length}
    config |= {"repeats": "keep"} if data.keeps_repeats else {}
    shown: dict[str, Any] = {"domain": data.domain, "config": config, EXPORTED: True}
    learnt = renamed(data.train_interactions)
    return PreparedData(data.catalogue, [], validation, [], learnt, shown, None, later, unmeasured)
