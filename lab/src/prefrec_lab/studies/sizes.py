"""Studies of the size of training data and of the model, with a run per size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe
from prefrec.report.wording import label
from prefrec_lab.study_tools.measure import measure, ranker_predictions, ranking_values, users_of
from prefrec_lab.study_tools.opened import change_data, start_of
from prefrec_lab.study_tools.plots import Series, lines, slug
from prefrec_lab.study_tools.study import Outcome, Study, as_it_is
from prefrec_lab.study_tools.tables import facts_of, grouped_table

ALL = "all"
ROWS: dict[str, tuple[int | None, int]] = {"1k": (1_000, 30), "10k": (10_000, 10), ALL: (None, 1)}
"""Size → training rows, of whole users, and how many times as often they are read."""

LAYERS: dict[str, int | None] = {"1": 1, "2": 2, "4": 4, "8": 8, ALL: None}
"""Size → first layers of the base that are kept."""


def data_sizes(base: Recipe) -> dict[str, tuple[Recipe, int | None]]:
    """Return size → the recipe with as many times its SFT's epochs, and the training rows to keep.

    Raises:
        ConfigError: the recipe has no SFT.
    """
    if base.sft is None:
        raise ConfigError("sft: the study varies how many rows SFT reads, but the recipe has no SFT: add sft")
    raw = base.model_dump(mode="json")
    return {
        size: (checked_recipe(raw | {"sft": raw["sft"] | {"epochs": base.sft.epochs * times}}), rows)
        for size, (rows, times) in ROWS.items()
    }


def model_sizes(base: Recipe) -> dict[str, tuple[Recipe, int | None]]:
    """Return size → the recipe with so many of the model's first layers, and None, which keeps all rows."""
    raw = base.model_dump(mode="json")
    return {
        size: (checked_recipe(raw | {"model": raw["model"] | {"layers": layers}}), None)
        for size, layers in LAYERS.items()
    }


def make(sizes: Callable[[Recipe], Mapping[str, tuple[Recipe, int | None]]], base: Recipe, folder: Path) -> Run:
    """Make a run of each size in FOLDER/SIZE; return that of the largest.

    Raises:
        ConfigError: the model that alignments start from is not evaluated.
    """
    if start_of(base) not in base.lm_rankers:
        raise ConfigError(
            "evaluate.zero_shot: the study compares with the model that alignments start from: set it to true, or "
            "add sft"
        )
    for size, (recipe, rows) in sizes(base).items():
        part = folder / size
        run_recipe(recipe, part, until="prepare")
        change_data(part, partial(some_users, rows=rows, seed=recipe.seed))
        run_recipe(recipe, part, until="evaluate")
    return open_run(folder / ALL)


def some_users(data: PreparedData, rows: int | None, seed: int) -> PreparedData:
    """Return the data with the training part of random users alone, until they have this many rows; None: of all.

    The rows under test stay, also those of users who are left out. A second call changes nothing.
    """
    if rows is None:
        return data
    counts = Counter(e.user_id for e in data.train)
    order = sorted(counts, key=lambda user: hashlib.sha256(f"{seed} {user}".encode()).digest())
    kept = set(order[: 1 + int(np.searchsorted(np.cumsum([counts[user] for user in order]), rows))])
    log = data.train_interactions.filter(pl.col("user_id").is_in(list(kept)))
    return replace(data, train=[e for e in data.train if e.user_id in kept], train_interactions=log)


def analyse(runs: Sequence[Run], folder: Path, *, sizes: Collection[str], x_label: str) -> Outcome:
    """Compare each size's rankers with its last baseline and its start, and the start with that of the largest size.

    The start is the model that alignments start from: SFT, or zero-shot without SFT.
    """
    parts = {size: [open_run(run.folder.parent / size) for run in runs] for size in sizes}
    predictions = {size: ranker_predictions(own) for size, own in parts.items()}
    recipe = runs[0].recipe
    start, users = start_of(recipe), users_of(predictions[ALL])
    values = {size: ranking_values(own, recipe.evaluate.ks) for size, own in predictions.items()}
    rule = next(reversed(recipe.evaluate.baselines))
    measured = {size: measure(own, users, baseline=rule) for size, own in values.items()}
    models = {size: {n: own[n] for n in recipe.lm_rankers} for size, own in values.items()}
    gains = {size: measure(own, users, baseline=start) for size, own in models.items()}
    across = measure({size: own[start] for size, own in values.items()}, users, baseline=ALL)
    metric = across.headline[-1]
    x = range(1, 1 + len(sizes))
    series = [Series(name, x, [own.intervals[name][metric] for own in measured.values()]) for name in values[ALL]]
    hint = f"From left to right: {', '.join(sizes)}. Bars: 95% intervals over users."
    drawing = lines(slug(metric), metric_label(metric), series, x_label=x_label, hint=hint)
    note = "Paired, with 95% intervals over users."
    table = grouped_table(measured, metric, name="table", title=f"by {x_label}", group="size", note=note)
    facts = [f"{label(start)}. {s}" for s in facts_of(across, quantities=[metric])]
    facts += [
        f"{size}. {s}"
        for size, own in (*measured.items(), *gains.items())
        for s in facts_of(own, recipe.lm_rankers, quantities=[metric])
    ]
    return Outcome([table], [drawing], facts, across.n, across.users)


DATA_SIZE = Study(
    "data-size",
    "How many training rows does the language model need, and when does it pass the best classical baseline?",
    "the users that all rankers learn from: as many as have 1,000 or 10,000 rows, and all. SFT reads the first 30 "
    "times, the second 10 times and all once; items, rows under test and all other settings are the same.",
    as_it_is,
    partial(analyse, sizes=ROWS, x_label="training rows"),
    make=partial(make, data_sizes),
)
MODEL_SIZE = Study(
    "model-size",
    "Does a deeper model rank better?",
    "how many of the first layers of the base are kept; data, steps and rates are the same.",
    as_it_is,
    partial(analyse, sizes=LAYERS, x_label="layers"),
    make=partial(make, model_sizes),
    overrides=("sft.rows=600", "align=[]", "evaluate.rows=300"),
)
