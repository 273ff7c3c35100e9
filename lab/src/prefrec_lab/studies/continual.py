"""Study: new interactions arrive, and the model is kept, updated on them, or trained again on everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from prefrec.data import PreparedData, RankingExample, prepared_digest, read_prepared
from prefrec.data.update import MARK
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import read_predictions
from prefrec.evaluation.labels import metric_label
from prefrec.files import read_json
from prefrec.pipeline.checks import available_rows, check_rows
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import predict_stages
from prefrec.recipe import Recipe, checked_recipe
from prefrec.report.wording import label
from prefrec.runs.stage import STAGE_FILE, is_previous, stage_key
from prefrec.sections import ALIGN, SFT, AlignSection, SFTSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import LMStage
from prefrec_lab.studies.alignments import variant
from prefrec_lab.study_tools.measure import groups_of, measure_groups, ranking_values
from prefrec_lab.study_tools.plots import interval_dots, slug
from prefrec_lab.study_tools.study import (
    Outcome,
    Study,
    as_it_is,
    on_all_positions,
    varied_alignment,
    with_alignments,
)
from prefrec_lab.study_tools.tables import facts_of, grouped_table, plain_table
from prefrec_lab.study_tools.trained_lists import trained_items_only

Section = TypeVar("Section", SFTSection, AlignSection)

ROWS = 500
"""Most rows under test of each period, unless `evaluate.rows` of the recipe is lower."""

BEFORE, UPDATED, RETRAINED = "not updated", "updated", "trained again"
MODELS = (BEFORE, UPDATED, RETRAINED)
NEW, OLD = "New rows (gain)", "Old rows (forgetting)"
PLOTS = {NEW: "gain", OLD: "forgetting"}
"""Names of the plots of the two groups."""


@dataclass(frozen=True)
class Periods:
    """Data cut in time, and the rows under test. Training lists hold only items known by the end of their period."""

    old: PreparedData  # rows and interactions of the first period, without those under test
    new: PreparedData  # rows of the second period, and all interactions, of which those of this period are marked
    both: PreparedData  # the two together
    new_test: list[RankingExample]  # rows of a third period
    old_test: list[RankingExample]  # last rows, in the first period, of users who do not come back in the second


def make(base: Recipe, folder: Path) -> Run:
    """Train three models of one recipe and query them on new and old examples; finished stages are skipped.

    Raises:
        ConfigError: the source has a split of its own, and so cannot be cut in time; or the data keep repeats.
        DataError: every user of the first period comes back.
    """
    recipe = continual_recipe(base)
    run_recipe(recipe, folder, until="prepare")
    data = read_prepared(folder / "data")
    parts = periods_of(recipe, data)
    plans = plans_of(recipe, parts)
    for plan in plans.values():
        check_rows(*plan)
    whole = prepared_digest(folder / "data")
    before = _trained(*plans[BEFORE], whole, BEFORE, folder)
    updated = _trained(*plans[UPDATED], whole, UPDATED, folder, before)
    retrained = _trained(*plans[RETRAINED], whole, RETRAINED, folder)
    trained = zip(MODELS, (before, updated, retrained), strict=True)
    stages = [LMStage(name, stage.weights, data, recipe.model, stage.made_with) for name, stage in trained]
    rows = [*parts.new_test, *parts.old_test]
    predict_stages(data, recipe.evaluate, stages, rows, folder / "asked", seed=recipe.seed)
    return open_run(folder)


def continual_recipe(base: Recipe) -> Recipe:
    """Return the recipe on data cut in time, with one S-DPO on rows of all places in a history and no `rankers`.

    Raises:
        ConfigError: the source has a split of its own, or the data keep repeats.
    """
    if base.data.kind.given:
        raise ConfigError(f"data.source: {base.data.source} has a split of its own and cannot be cut in time")
    if base.data.repeats == "keep":
        raise ConfigError("data.repeats: the study would lose the repeats of the second period: set it to drop")
    alone = base.model_copy(update={"rankers": []})
    recipe = on_all_positions(with_alignments(alone, [variant(varied_alignment(base), "s-dpo")]))
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"split": "time", "windows": "all"}
    raw["data"] |= {"max_train_rows": None, "max_validation_rows": None}
    raw["evaluate"] |= {"split": "test", "rows": min(base.evaluate.rows or ROWS, ROWS), "generate_rows": 0}
    return checked_recipe(raw)


def periods_of(recipe: Recipe, data: PreparedData) -> Periods:
    """Return old, new and both periods, and the rows under test of old and new.

    Args:
        data: cut in time: training rows are old, validation rows are new, test rows are newer still.

    Raises:
        DataError: every user of the first period comes back.
    """
    rng = np.random.default_rng((recipe.data.seed, 6))
    back = {e.user_id for e in (*data.validation, *data.test)}
    last = {e.user_id: e for e in data.train if e.user_id not in back}
    if not last:
        raise DataError("every user of the first period comes back later, so no old row can be held out for the test")
    limit = recipe.evaluate.rows
    old_test = [list(last.values())[i] for i in rng.permutation(len(last))[:limit].tolist()]
    new_test = [data.test[i] for i in rng.permutation(len(data.test))[:limit].tolist()]
    held = {(e.user_id, e.target) for e in old_test}
    old_rows = [e for e in data.train if (e.user_id, e.target) not in held]
    pairs = zip(data.train_interactions["user_id"], data.train_interactions["item_id"], strict=True)
    old_log = data.train_interactions.filter(pl.Series([p not in held for p in pairs], dtype=pl.Boolean))
    new_log = log_of(data.validation, old_log)
    # As in `update_split` with `replay: 0`: old interactions are no targets, but they compete and are in histories.
    logs = [log.with_columns(pl.lit(is_new).alias(MARK)) for log, is_new in ((old_log, False), (new_log, True))]
    marked_log = pl.concat(logs).sort("user_id", "timestamp", maintain_order=True)
    both_log = marked_log.drop(MARK)
    old_rows = trained_items_only(old_rows, data, old_log, recipe.data.seed)
    new_rows = trained_items_only(data.validation, data, both_log, recipe.data.seed)
    return Periods(
        replace(data, train=old_rows, train_interactions=old_log),
        replace(data, train=new_rows, train_interactions=marked_log),
        replace(data, train=[*old_rows, *new_rows], train_interactions=both_log),
        new_test,
        old_test,
    )


def log_of(rows: Sequence[RankingExample], before: pl.DataFrame) -> pl.DataFrame:
    """Return the interactions behind rows of one period, each user's in their order, without those of `before`.

    A user's first row adds the items of its history that `before` lacks. Timestamps continue those of `before` by
    counting. Further columns of `before` are null.
    """
    known = set(before.select("user_id", "item_id").iter_rows())
    start = int(before["timestamp"].max() or 0) + 1  # type: ignore[arg-type]
    times: dict[tuple[str, str], int] = {}
    for e in rows:
        for item in (*e.history, e.target):
            if (e.user_id, item) not in known:
                times.setdefault((e.user_id, item), start + len(times))
    log = [(user, item, time) for (user, item), time in times.items()]
    schema = {c: before.schema[c] for c in ("user_id", "item_id", "timestamp")}
    frame = pl.DataFrame(log, schema=schema, orient="row")
    whole = pl.concat([before.clear(), frame], how="diagonal")
    return whole.sort("user_id", "timestamp", maintain_order=True)


def plans_of(recipe: Recipe, parts: Periods) -> dict[str, tuple[Recipe, PreparedData]]:
    """Return model → the recipe of its stages, and the data that they take their rows from.

    The model that is trained again takes as many rows as the other two really take together.
    """
    taken = [rows_of(recipe, part) for part in (parts.old, parts.new)]

    def together(name: str, section: Section) -> Section:
        rows = sum(counts[name] for counts in taken)
        return section.model_copy(update={"rows": rows, "skip_rows": 2 * section.skip_rows})

    both = {
        "sft": together(SFT, recipe.sft) if recipe.sft else None,
        "align": [together(a.name, a) for a in recipe.align],
    }
    return {
        BEFORE: (recipe, parts.old),
        UPDATED: (recipe, parts.new),
        RETRAINED: (recipe.model_copy(update=both), parts.both),
    }


def rows_of(recipe: Recipe, data: PreparedData) -> dict[str, int]:
    """Return stage of a plan (`plans_of`) → number of ranking questions, or of histories, that it is trained on."""
    available = {name.removeprefix("align."): count for name, count in available_rows(recipe, data).items()}
    left = {name: max(0, available[name] - section.skip_rows) for name, section in _sections(recipe).items()}
    return {name: left[name] if s.rows is None else min(left[name], s.rows) for name, s in _sections(recipe).items()}


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Measure gain on new rows and forgetting on old ones, against the model without an update; and seconds."""
    recipe = runs[0].recipe
    parts = periods_of(recipe, runs[0].data)
    names = [NEW] * len(parts.new_test) + [OLD] * len(parts.old_test)
    users = [e.user_id for e in (*parts.new_test, *parts.old_test)]
    predictions = {
        name: [read_predictions(run.folder / "asked" / f"{name}.parquet").sort("row") for run in runs]
        for name in MODELS
    }
    values = ranking_values(predictions, recipe.evaluate.ks)
    measured = measure_groups(values, users, groups_of(names, (NEW, OLD)), BEFORE)
    metrics = next(iter(measured.values())).headline
    tables = [
        grouped_table(
            measured,
            metric,
            name="table" if metric == metrics[-1] else slug(metric),
            title="on new and on old rows",
            first="Model",
            note=_NOTE,
        )
        for metric in reversed(metrics)
    ]
    plans = plans_of(recipe, parts)
    tables.append(plain_table("effort", "Effort", "Model", effort_frame(runs, plans), _EFFORT_NOTE))
    metric = metrics[-1]
    facts, drawings = [], []
    for group, of_group in measured.items():
        facts += [f"{group}. {s}" for s in facts_of(of_group, quantities=[metric])]
        shown = {name: of_group.intervals[name][metric] for name in MODELS}
        title = f"{metric_label(metric)}, {group.lower()}"
        drawings.append(interval_dots(f"{slug(metric)}-{PLOTS[group]}", title, shown, MODELS))
    notes = [_period_note(parts), *_shortfalls(plans), *_NOTES]
    return Outcome(tables, drawings, facts, len(users), len(set(users)), notes)


def effort_frame(runs: Sequence[Run], plans: Mapping[str, tuple[Recipe, PreparedData]]) -> pl.DataFrame:
    """Return model → rows and training seconds of its own stages, mean over the seeds."""
    rows = []
    for name in MODELS:
        seconds = [sum(float(s["seconds"]) for s in _states(_folder(run.folder, name))) for run in runs]
        counts = {f"{label(stage)} rows": n for stage, n in rows_of(*plans[name]).items()}
        rows.append({"model": name, **counts, "seconds": round(float(np.mean(seconds)), 1)})
    return pl.DataFrame(rows)


def _states(folder: Path) -> list[dict[str, Any]]:
    """Return the stage files of a model, without those that another recipe left (`NAME.previous-N`)."""
    files = sorted(folder.rglob(STAGE_FILE))
    return [read_json(p) for p in files if not any(map(is_previous, p.relative_to(folder).parts))]


def _trained(
    recipe: Recipe, data: PreparedData, whole: str, name: str, folder: Path, start: RankerStage | None = None
) -> RankerStage:
    """Return the last model of the recipe's stages on one part of the data, whose key as a whole is `whole`."""
    # An update made when its log was that of the second period alone is out of date.
    marked = {"log": "marked"} if MARK in data.train_interactions.columns else {}
    key = stage_key(data=whole, part=name, rows=recipe.evaluate.rows, lists="trained items", **marked)
    inputs = RunInputs(data, key, recipe.model, recipe.lora, recipe.seed)
    plan = Plan(recipe, inputs, _folder(folder, name), start)
    for stage in plan.stages(plan.until(ALIGN)):
        stage.run()
    return plan.stage(recipe.lm_rankers[-1])


def _folder(folder: Path, name: str) -> Path:
    return folder / slug(name)


def _sections(recipe: Recipe) -> dict[str, SFTSection | AlignSection]:
    return {**({SFT: recipe.sft} if recipe.sft else {}), **{a.name: a for a in recipe.align}}


def _shortfalls(plans: Mapping[str, tuple[Recipe, PreparedData]]) -> list[str]:
    """Return a sentence for each stage that has fewer rows than it should take."""
    return [
        f"{label(stage)} of the model “{name}” takes {count:,} rows, not {_sections(recipe)[stage].rows:,}: there "
        "are no more."
        for name, (recipe, data) in plans.items()
        for stage, count in rows_of(recipe, data).items()
        if count < (_sections(recipe)[stage].rows or 0)
    ]


def _period_note(parts: Periods) -> str:
    return (
        f"Old: {len(parts.old.train):,} training rows before the first cut in time; new: {len(parts.new.train):,} "
        f"rows between the cuts; the {len(parts.new_test):,} new rows under test lie after the second cut. The "
        f"{len(parts.old_test):,} old rows under test are the last of users who do not come back; neither they nor "
        "their interactions are trained on."
    )


_NOTE = (
    "Updated: what `prefrec update` does with `replay: 0`. SFT goes on with the histories of users who have new "
    "interactions, and S-DPO with new rows only. Trained again: from the base, on as many rows of both periods as "
    "the other two used together. 95% intervals over users."
)
_EFFORT_NOTE = "Wall time of the training stages, mean over the seeds. An update needs the first model’s time, too."
_NOTES = (
    "Candidates under test come from the whole catalogue. Training lists hold only items that occur in training by "
    "the end of their period.",
    "A stage samples its rows from its period. If the recipe asks for few, no model sees most of the new rows.",
)

CONTINUAL = Study(
    "continual",
    "When new interactions arrive, is it enough to update the model on them, and what does it forget?",
    "the rows that a model has seen: old ones; old, then new ones; both from the start. Recipe and base are "
    "the same.",
    as_it_is,
    analyse,
    make=make,
)
