"""Study: users with up to three interactions, and items without training interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.baselines import BASELINES
from prefrec.recipe import Recipe, checked_recipe
from prefrec_lab.studies.alignments import variant
from prefrec_lab.studies.fairness import item_counts
from prefrec_lab.study_tools.measure import (
    Measured,
    groups_of,
    measure,
    measure_groups,
    ranker_predictions,
    ranking_values,
)
from prefrec_lab.study_tools.opened import change_data, start_of
from prefrec_lab.study_tools.plots import interval_dots, slug
from prefrec_lab.study_tools.study import (
    SASREC,
    Drawing,
    Outcome,
    Study,
    as_it_is,
    on_all_positions,
    varied_alignment,
    with_alignments,
)
from prefrec_lab.study_tools.tables import facts_of, grouped_table, logs_read_note
from prefrec_lab.study_tools.trained_lists import trained_items_only
from prefrec_systems.morec.config import MoRecConfig

FEW = 3
"""Most interactions, before the row's target, of a cold user."""

ROWS = 150
"""Rows of each kind (cold items, cold users, neither), unless the recipe sets `evaluate.rows`."""

JUDGE = SASREC.model
COLD_USER = f"Users with ≤ {FEW} interactions"
COLD_ITEM = "Items absent from training"
WARM = "Neither"


def make(base: Recipe, folder: Path) -> Run:
    """Make a run on the recipe's data cut in time, evaluated on rows of cold users, of cold items and of neither.

    The cut in time brings new users and new items; leave-last-out has hardly any. Lists of training rows hold only
    items of training.

    Raises:
        DataError: the data have no row of a cold user or a cold item.
    """
    rows = base.evaluate.rows or ROWS
    recipe = cold_recipe(base)
    run_recipe(recipe, folder, until="prepare")
    change_data(folder, partial(without_new_items, seed=base.data.seed))
    under_test = partial(cold_rows, n=rows, seed=base.data.seed)
    return run_recipe(recipe, folder, until="evaluate", under_test=under_test, equal_logs=True)


def cold_recipe(base: Recipe) -> Recipe:
    """Return the recipe on data cut in time, with histories from 1, one S-DPO, MoRec and SASRec.

    MoRec's item encoder is the recipe's own base model, frozen. Language models are trained on rows of all places in
    a history, so that they see short ones.

    Raises:
        ConfigError: histories are cut so short that cold users cannot be told from others.
    """
    _require_long_histories(base)
    recipe = on_all_positions(with_alignments(base, [variant(varied_alignment(base), "s-dpo")]))
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"min_history": 1}
    if not base.data.kind.given:
        raw["data"] |= {"split": "time", "windows": "all"}
    raw["evaluate"] |= {"split": "test", "rows": None, "generate_rows": 0}
    raw["evaluate"]["zero_shot"] = base.model.answers == "titles"
    if JUDGE not in [r["name"] for r in raw["rankers"]]:
        raw["rankers"].append(SASREC.model_dump(mode="json"))
    morec = MoRecConfig(encoder=base.model.name)
    if morec.kind not in [r["kind"] for r in raw["rankers"]]:
        raw["rankers"].append(morec.model_dump(mode="json"))
    return checked_recipe(raw)


def cold_rows(data: PreparedData, n: int, seed: int) -> PreparedData:
    """Return the data with at most n random test rows of cold items, n of cold users and n of neither.

    Rows of cold items are of users of any kind. In the other two kinds the targets occur in training. Rows of cold
    users are drawn from each length of history alike. Each kind is drawn independently of the others.

    Raises:
        DataError: there is no cold user and no cold item.
    """
    known = item_counts(data)
    rng = np.random.default_rng((seed, 5))
    kinds: dict[str, list[int]] = {}
    for i, e in enumerate(data.test):
        kind_of_user = f"user {len(e.history)}" if len(e.history) <= FEW else "warm"
        kinds.setdefault(kind_of_user if e.target in known else "item", []).append(i)
    if not set(kinds) - {"warm"}:
        raise DataError(
            f"none of {len(data.test)} test rows has a history of up to {FEW} items or a target that is absent from "
            "training: there is no cold start to study in these data"
        )
    kept: set[int] = set()
    cold_users = sorted(kind for kind in kinds if kind.startswith("user"))
    for kind in sorted(kinds):
        share = n
        if kind in cold_users:
            share = n // len(cold_users) + (cold_users.index(kind) < n % len(cold_users))
        kept |= set(rng.permutation(kinds[kind])[:share].tolist())
    rows = [data.test[i] for i in sorted(kept)]
    return replace(data, test=rows)


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare each ranker with SASRec, if a run has it, on cold and warm users and items.

    Raises:
        ConfigError: histories are cut so short that cold users cannot be told from others.
        DataError: no row is of a cold user or a cold item.
    """
    run = runs[0]
    _require_long_histories(run.recipe)
    predictions = ranker_predictions(runs)
    examples = examples_behind(run, next(iter(predictions.values()))[0])
    users, known = [e.user_id for e in examples], item_counts(run.data)
    values = ranking_values(predictions, run.recipe.evaluate.ks)
    baseline = next((n for n in (JUDGE, start_of(run.recipe), *predictions) if n in predictions), None)
    by_kind = kind_groups(examples, known)
    if not {COLD_USER, COLD_ITEM} & by_kind.keys():
        raise DataError(f"{run.folder}: no row under test is of a cold user or a cold item")
    kinds = measure_groups(values, users, by_kind, baseline)
    whole = measure(values, users, baseline=baseline)
    metric = whole.headline[-1]
    models = [n for n in predictions if n not in BASELINES]
    tables = [grouped_table(kinds, metric, name="table", title="on cold and warm users and items", note=_KINDS_NOTE)]
    facts = [
        f"{g}, n = {kinds[g].n:,}. {s}"
        for g in (COLD_USER, COLD_ITEM)
        if g in kinds
        for s in facts_of(kinds[g], models, quantities=[metric])
    ]
    notes = [*_NOTES, *logs_read_note(run)]
    return Outcome(tables, _drawings(kinds, models, metric), facts, whole.n, whole.users, notes)


def _require_long_histories(recipe: Recipe) -> None:
    """Raise ConfigError if `data.history_length` cuts histories so short that cold users are not recognised.

    A row shows by its history how many interactions came before.
    """
    if recipe.data.history_length <= FEW:
        raise ConfigError(
            f"data.history_length: with histories cut to {recipe.data.history_length} every user would count as one "
            f"of up to {FEW} interactions; make it {FEW + 1} or more"
        )


def examples_behind(run: Run, frame: pl.DataFrame) -> list[RankingExample]:
    """Return the rows behind a ranker's predictions, with their histories, in the order of the frame.

    Raises:
        DataError: a row is not among those of the run's data.
    """
    split = run.recipe.evaluate.split
    known = {(e.user_id, e.target, e.candidates): e for e in run.data.split(split)}
    keys = zip(*(frame[c].to_list() for c in ("user_id", "target", "candidates")), strict=True)
    try:
        return [known[user, target, tuple(candidates)] for user, target, candidates in keys]
    except KeyError as e:
        raise DataError(
            f"{run.folder}: predictions of user {e.args[0][0]!r} answer no {split} row of its data"
        ) from None


def kind_groups(examples: Sequence[RankingExample], known: dict[str, int]) -> dict[str, NDArray[np.bool_]]:
    """Return the examples of cold items, of cold users otherwise, and of neither, without empty kinds."""
    kinds = [COLD_ITEM if e.target not in known else COLD_USER if len(e.history) <= FEW else WARM for e in examples]
    return groups_of(kinds, (COLD_USER, COLD_ITEM, WARM))


def without_new_items(data: PreparedData, seed: int) -> PreparedData:
    """Return the data with training candidate sets that contain only items with training interactions."""
    return replace(data, train=trained_items_only(data.train, data, data.train_interactions, seed))


def _drawings(kinds: dict[str, Measured], models: Sequence[str], metric: str) -> list[Drawing]:
    """Return a plot for each kind of cold rows."""
    return [
        interval_dots(
            f"{slug(metric)}-{name}",
            f"{metric_label(metric)}, {kind.lower()}",
            {ranker: intervals[metric] for ranker, intervals in kinds[kind].intervals.items()},
            models,
        )
        for kind, name in ((COLD_USER, "cold-users"), (COLD_ITEM, "cold-items"))
        if kind in kinds
    ]


_KINDS_NOTE = (
    "A user’s interactions are those before the row’s target. Users with few interactions have 1 to "
    f"{FEW} of them, in equal shares, and targets that occur in training. 95% intervals over the users of the group."
)
_NOTES = (
    "Candidates under test come uniformly from the whole catalogue, so a ranker that puts unknown items last is "
    "nearly always wrong about a new target. Training lists hold training items only.",
    "Rows are chosen by kind: their overall mean does not estimate the mean over users.",
)

COLD_START = Study(
    "cold-start",
    "Who ranks best for users with few interactions and for new items: language models, SASRec or MoRec?",
    f"the rows under test: users with up to {FEW} interactions, targets absent from training, and neither; the data "
    "are cut in time, which brings new users and items.",
    as_it_is,
    analyse,
    reads_any_run=True,
    make=make,
    overrides=(
        f"evaluate.rows={ROWS}",
        f"rankers=[{{kind: sequential, model: {JUDGE}, epochs: 30, patience: 3}}, "
        "{kind: morec, epochs: 30, patience: 3}]",
    ),
)
