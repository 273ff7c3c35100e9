"""Study: users with up to three interactions, and items that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec import processes
from prefrec.data import PreparedData, RankingExample, read_prepared, write_prepared
from prefrec.data.config import GIVEN_SOURCES
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import Interval
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.recipe import REFERENCE_RANKERS, ZERO_SHOT, Recipe, checked_recipe
from prefrec.pipeline.run import run_recipe
from prefrec_lab.studies.alignments import variant
from prefrec_lab.studies.fairness import item_counts
from prefrec_lab.studies.groups import grouped_table, groups_of, measure_groups
from prefrec_lab.studies.measure import Measured, measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import Series, interval_dots, lines, slug
from prefrec_lab.studies.study import (
    FEWER_ROWS,
    SASREC,
    Drawing,
    Outcome,
    Study,
    as_it_is,
    has_hopwise,
    on_all_places,
    varied_alignment,
    with_alignments,
)
from prefrec_lab.studies.tables import facts_of
from prefrec_lab.studies.trained_lists import of_trained_items
from prefrec_systems.morec.config import MoRecConfig

FEW = 3
"""Interactions of a user, before the row's target, up to which the user is cold."""

ROWS = 150
"""Rows of each kind: cold items, cold users, neither; where the recipe says `evaluate.rows`, as many as that."""

JUDGE = SASREC.model
COLD_USER, COLD_ITEM, WARM = f"Users with ≤ {FEW} interactions", "Items absent from training", "Neither"
LENGTHS = (*(str(n) for n in range(1, FEW + 1)), f"{FEW + 1} and more")


def make(base: Recipe, folder: Path) -> Run:
    """A run on the recipe's data cut in time, evaluated on rows of cold users, of cold items and of neither.

    The cut in time is what brings new users and new items; with leave-last-out there are hardly any. Lists of
    training rows hold items of training alone.

    Raises:
        DataError: the data have no row of a cold user or a cold item.
    """
    rows = base.evaluate.rows or ROWS
    recipe = cold_recipe(base)
    run_recipe(recipe, folder, until="prepare")
    if processes.is_first():
        _leave_out_new_items(folder / "data", base.data.seed)
    processes.wait()
    run_recipe(recipe, folder, until="evaluate", under_test=lambda data: cold_rows(data, rows, base.data.seed))
    return open_run(folder)


def cold_recipe(base: Recipe) -> Recipe:
    """The base recipe on data cut in time, histories from 1, one S-DPO, SASRec where it can be trained, and MoRec.

    MoRec's item encoder is the recipe's own base model, frozen. Language models are trained on rows of all places in
    a history, the short ones at its beginning among them.

    Raises:
        ConfigError: histories are cut so short that cold users cannot be told from others.
    """
    _require_long_histories(base)
    recipe = on_all_places(with_alignments(base, [variant(varied_alignment(base), "s-dpo")]))
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"min_history": 1}
    if base.data.source not in GIVEN_SOURCES:
        raw["data"] |= {"split": "time", "windows": "all"}
    raw["evaluate"] |= {"split": "test", "rows": None, "generate_rows": 0, "zero_shot": True}
    known = [s["model"] for s in raw["sequential"]]
    if JUDGE not in known and has_hopwise():
        raw["sequential"].append(SASREC.model_dump(mode="json"))
    titles = MoRecConfig(encoder=base.model.name)
    if titles.kind not in [r["kind"] for r in raw["rankers"]]:
        raw["rankers"].append(titles.model_dump(mode="json"))
    return checked_recipe(raw)


def cold_rows(data: PreparedData, n: int, seed: int) -> PreparedData:
    """The data with fewer test rows: at most n of cold items, n of cold users, n of neither, at random.

    Cold items are asked about for users of any kind; the targets of cold users, whose rows are drawn from each length
    of history alike, and of the rest occur in training. So each kind is as its own draw made it.

    Raises:
        DataError: there is no cold user and no cold item.
    """
    known = item_counts(data)
    rng = np.random.default_rng((seed, 5))
    kinds: dict[str, list[int]] = {}
    for i, e in enumerate(data.test):
        few = f"user {len(e.history)}" if len(e.history) <= FEW else "warm"
        kinds.setdefault(few if e.target in known else "item", []).append(i)
    if not set(kinds) - {"warm"}:
        raise DataError(
            f"none of {len(data.test)} test rows has a history of up to {FEW} items or a target that is absent from "
            "training: there is no cold start to study in these data"
        )
    kept: set[int] = set()
    for kind in sorted(kinds):
        share = n if not kind.startswith("user") else -(-n // FEW)
        kept |= set(rng.permutation(kinds[kind])[:share].tolist())
    rows = [data.test[i] for i in sorted(kept)]
    return replace(data, test=rows)


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Each ranker on cold and warm users and items, held against SASRec where a run has it.

    Raises:
        ConfigError: histories are cut so short that cold users cannot be told from others.
        DataError: no row is of a cold user or a cold item.
    """
    run = runs[0]
    _require_long_histories(run.recipe)
    predictions = of_rankers(runs)
    examples = asked_of(run, next(iter(predictions.values()))[0])
    users, known = [e.user_id for e in examples], item_counts(run.data)
    values = ranking_values(predictions, run.recipe.evaluate.ks)
    baseline = next((n for n in (JUDGE, run.start, *predictions) if n in predictions), None)
    by_kind = kind_groups(examples, known)
    if not {COLD_USER, COLD_ITEM} & by_kind.keys():
        raise DataError(f"{run.folder}: no row under test is of a cold user or a cold item")
    kinds = measure_groups(values, users, by_kind, baseline)
    lengths = measure_groups(values, users, groups_of(_lengths(examples, known), LENGTHS), baseline)
    whole = measure(values, users, baseline=baseline)
    metric = whole.headline[-1]
    models = [n for n in predictions if n not in REFERENCE_RANKERS]
    tables = [grouped_table(kinds, metric, name="table", title="on cold and warm users and items", note=_KINDS_NOTE)]
    if lengths:
        tables.append(
            grouped_table(
                lengths, metric, name="lengths", title="by interactions of the user before", note=_LENGTHS_NOTE
            )
        )
    facts = [
        f"{g}, n = {kinds[g].n:,}. {s}"
        for g in (COLD_USER, COLD_ITEM)
        if g in kinds
        for s in facts_of(kinds[g], models, quantities=[metric])
    ]
    return Outcome(tables, _drawings(kinds, lengths, models, metric), facts, whole.n, whole.users, list(_NOTES))


def _require_long_histories(recipe: Recipe) -> None:
    """A row tells how many interactions came before by its history, which `data.history_length` cuts."""
    if recipe.data.history_length <= FEW:
        raise ConfigError(
            f"data.history_length: with histories cut to {recipe.data.history_length} every user would count as one "
            f"of up to {FEW} interactions; make it {FEW + 1} or more"
        )


def asked_of(run: Run, frame: pl.DataFrame) -> list[RankingExample]:
    """The rows behind a ranker's predictions, with their histories, in the order of the frame.

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
    """Which rows are of cold items, of cold users otherwise, and of neither; kinds without rows are left out."""
    kinds = [COLD_ITEM if e.target not in known else COLD_USER if len(e.history) <= FEW else WARM for e in examples]
    return groups_of(kinds, (COLD_USER, COLD_ITEM, WARM))


def _lengths(examples: Sequence[RankingExample], known: dict[str, int]) -> list[str]:
    """The user's interactions before each row, as in `LENGTHS`; "" for cold items and where there are none."""
    return [LENGTHS[min(len(e.history), FEW + 1) - 1] if e.history and e.target in known else "" for e in examples]


def _leave_out_new_items(folder: Path, seed: int) -> None:
    """Prepared data whose training lists hold items of training alone; those that do are left as they are."""
    data = read_prepared(folder)
    rows = of_trained_items(data.train, data, data.train_interactions, seed)
    if rows != data.train:
        write_prepared(replace(data, train=rows), folder)


def _drawings(
    kinds: dict[str, Measured], lengths: dict[str, Measured], models: Sequence[str], metric: str
) -> list[Drawing]:
    found, title = [], metric_label(metric)
    if len(lengths) > 1:
        shown = [n for n in models if n != ZERO_SHOT]
        x = [1 + LENGTHS.index(g) for g in lengths]
        series = [Series(n, x, [of.intervals[n][metric] for of in lengths.values()]) for n in shown]
        hint = f"{FEW + 1} stands for {LENGTHS[-1]}. Bars: 95% intervals over users."
        found.append(lines(slug(metric), title, series, x_label="interactions of the user before", hint=hint))
    if COLD_ITEM in kinds:
        shown_items: dict[str, Interval] = {n: of[metric] for n, of in kinds[COLD_ITEM].intervals.items()}
        found.append(
            interval_dots(f"{slug(metric)}-cold-items", f"{title}, {COLD_ITEM.lower()}", shown_items, models)
        )
    return found


_KINDS_NOTE = (
    f"A user’s interactions are those before the row’s target, training or not. Items absent from training are asked "
    f"about for users of any kind; the targets of the other two groups occur in training. Cold users’ rows are drawn "
    f"from 1, …, {FEW} interactions alike. In brackets 95% intervals by bootstrap over the users of the group."
)
_LENGTHS_NOTE = "Targets that occur in training alone. In brackets 95% intervals by bootstrap over users."
_NOTES = (
    "Lists under test are drawn uniformly from the whole catalogue: where the target is absent from training, most "
    "of the other candidates are not, and a ranker that puts unknown items last is nearly always wrong. Lists of "
    "training rows hold items of training alone: no model saw a new item as a rejected answer.",
    "Language models are trained on rows of all places in users’ histories, short ones at the beginning among them.",
    "Rows are chosen by what they are: the mean over all of them is no estimate for the users of the data.",
)

COLD_START = Study(
    "cold-start",
    "Who is right about users with few interactions and about new items: language models, SASRec or MoRec?",
    f"the rows under test: users with up to {FEW} interactions, targets absent from training, and neither; the data "
    "are cut in time, which brings new users and items.",
    as_it_is,
    analyse,
    reads_any_run=True,
    make=make,
    overrides=(*FEWER_ROWS, f"evaluate.rows={ROWS}"),
)
