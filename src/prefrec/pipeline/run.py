"""Run a recipe: prepare → sft → align → evaluate → report. Stages that are up to date are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.markup import escape

from prefrec.console import quiet_warnings, say
from prefrec.data import PreparedData, prepared_digest, read_prepared, write_prepared
from prefrec.errors import ConfigError, did_you_mean
from prefrec.evaluation import Audit
from prefrec.files import content_digest, make_folder, write_json, write_text
from prefrec.intake import prepare
from prefrec.lm.models import check_name
from prefrec.pipeline.audited import audit_under_test
from prefrec.pipeline.best import best_on_validation
from prefrec.pipeline.checks import check_rows, check_titles, trained_sections, warn_of_idle_dropout
from prefrec.pipeline.encoders import shown_items
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.measure import evaluate_rankers, logs_read, metrics_json
from prefrec.pipeline.measure_preferences import run_preferences
from prefrec.pipeline.plan import ALIGN, Plan, differences, make_once, stage_folder, stage_names, why_due
from prefrec.pipeline.price import Price, price
from prefrec.pipeline.recipe import RANKERS, SFT, ZERO_SHOT, Recipe, dump_recipe, map_files, reached
from prefrec.pipeline.update import is_refit, measure_update, split_change
from prefrec.processes import is_first
from prefrec.report import write_report
from prefrec.runs.contents import BEST, METRICS, PREFERENCES, REFIT, UPDATE, result_inputs, write_results
from prefrec.runs.lock import reader_lock, run_lock
from prefrec.runs.stage import machine, read_state, refuse_name, stage_key
from prefrec.strict_yaml import read_yaml

PRICED_S = 20
"""Expected seconds from which a run prints its price before training."""
STAGES = ("prepare", SFT, ALIGN, RANKERS, "evaluate", "report")


@quiet_warnings()
def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    until: str = "report",
    under_test: Callable[[PreparedData], PreparedData] | None = None,
) -> Path:
    """Run a recipe.

    A stage whose inputs have not changed is skipped; an interrupted stage resumes. With many processes (`accelerate
    launch`) all of them train and score, and the first one writes the files.

    Args:
        recipe: all settings of the run.
        folder: of the run; it is created.
        until: the last stage: one of `STAGES`, or the name of a ranker, which is made with its dependencies.
        under_test: replaces the data of the evaluation, for example by data with fewer test examples.

    Returns:
        The path of the report if `until` is `report`, else `folder`.

    Raises:
        ConfigError: a stage is unknown, has a reserved name or no examples, or another run works in the folder.
    """
    _check_until(recipe, until)
    for name in (*(s.name for s in recipe.align), *(r.name for r in recipe.rankers)):
        refuse_name(name)
    if recipe.lm_rankers and until != "prepare":
        for name in _models(recipe):
            check_name(name)
    make_folder(folder)
    with run_lock(folder), reader_lock(recipe.update.run) if recipe.update else nullcontext():
        if is_first():
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
            write_json(folder / "environment.json", machine() | {"seed": recipe.seed})
        data = prepare_stage(recipe, folder / "data")
        if until == "prepare":
            return folder
        check_rows(recipe, data)
        warn_of_idle_dropout(recipe.lora, trained_sections(recipe))
        measured = until in ("evaluate", "report")
        plan = planned(recipe, data, folder)
        if trained_sections(recipe) and plan.stale():
            check_titles(data, recipe.model)
        cost = price(plan, until) if is_first() else None
        if cost and cost.seconds >= PRICED_S:
            say(escape(str(cost)))
        key = plan.inputs.data_key
        audit = audit_under_test(data, recipe.evaluate, recipe.seed, key=key, folder=folder) if measured else None
        entries = plan.run(RANKERS if measured else until)
        if measured:
            rows, audit = (under_test(data), None) if under_test else (data, audit)
            _evaluate(plan, rows, entries, audit)
        return write_report(folder) if until == "report" and is_first() else folder


def _models(recipe: Recipe) -> list[str]:
    """Return the names of the base model and, for item-ID tokens, of the title encoder."""
    vectors = recipe.model.items.vectors
    is_named = recipe.model.answers == "items" and vectors not in ("base", "tfidf")
    return [recipe.model.name, *([vectors] if is_named else [])]


def survey(recipe: Recipe, folder: Path, until: str = "report") -> list[dict[str, Any]]:
    """Return the stages of a run as JSON: why each has to run, its dependencies, and what it cost last time.

    An empty `why` means that the result is up to date. Before the data are prepared, all other stages have to run.
    """
    _check_until(recipe, until)
    prepared, key, config = folder / "data", data_key(recipe), recipe.data.model_dump(mode="json")
    state = read_state(prepared)
    why = why_due(prepared, key, differences(state.get("config"), config, "data") or ["files of the data"])
    stages = [_surveyed("prepare", prepared, why, [])]
    if until == "prepare":
        return stages
    wanted = reached(recipe.needs, *stage_names(recipe, RANKERS if until in ("evaluate", "report") else until))
    plan = planned(recipe, read_prepared(prepared), folder) if not why and state.get("key") == key else None
    if plan is None:
        for name in wanted:
            if name != ZERO_SHOT:
                stages.append(
                    _surveyed(name, stage_folder(recipe, folder, name), "after prepare", recipe.needs[name])
                )
        # Which other rankers have a stage in the refit is known once there are data.
        models = [name for name in wanted if name in recipe.lm_rankers and name != ZERO_SHOT and recipe.refit]
        for name in models:
            again, needs = f"{name} {REFIT}", [name, *(f"{need} {REFIT}" for need in recipe.needs[name])]
            stages.append(_surveyed(again, stage_folder(recipe, folder / REFIT, name), "after prepare", needs))
        return stages
    for step in plan.steps(wanted):
        if step.entry.make:
            needed = [need.name for need in plan.needed(step)] if step.is_refit else [*step.needs]
            stages.append(_surveyed(step.name, step.folder, plan.explain(step), needed))
    return stages


def expected(recipe: Recipe, folder: Path) -> Price | None:
    """Return the estimated cost of the stages that have to run (`price`); None before the data are prepared."""
    prepared, key = folder / "data", data_key(recipe)
    if why_due(prepared, key, []) or read_state(prepared).get("key") != key:
        return None
    return price(planned(recipe, read_prepared(prepared), folder))


def _surveyed(name: str, folder: Path, why: str, needs: Sequence[str]) -> dict[str, Any]:
    state = read_state(folder)
    costs = {cost: state.get(cost) or None for cost in ("seconds", "peak_bytes")}
    return {"stage": name, "why": why, "needs": list(needs), **costs}


def _check_until(recipe: Recipe, until: str) -> None:
    stages = [*STAGES, *recipe.needs]
    if until not in stages:
        near = did_you_mean(until, stages)
        raise ConfigError(f"unknown stage {until!r}: expected one of {', '.join(stages)}{near}")


def planned(recipe: Recipe, data: PreparedData, folder: Path) -> Plan:
    """Return the plan of a run on its prepared data; `folder` is the run's."""
    key, size = prepared_digest(folder / "data"), recipe.evaluate.batch_size
    return Plan(recipe, RunInputs(data, key, recipe.model, recipe.lora, recipe.seed, size), folder)


def prepare_stage(recipe: Recipe, folder: Path) -> PreparedData:
    """Return the recipe's data, and prepare them in `folder` if they are not there."""
    config, update = recipe.data, recipe.update

    def make() -> None:
        if is_first():
            prepared = prepare(config, split_change(update, config.seed) if update else None, as_codes=True)
            write_prepared(prepared, folder)
            say(escape("\n".join(f"• {line}" for line in prepared.summary)))

    make_once(folder, data_key(recipe), "prepare", make, "prepare", config.model_dump(mode="json"))
    data = read_prepared(folder)
    shown_items(recipe.model, data.catalogue)  # a wrong item_text must fail before any training
    return data


def data_key(recipe: Recipe) -> str:
    """Return the key of a recipe's prepared data: its settings, and the content of its files."""
    config, update = recipe.data, recipe.update
    more: dict[str, Any] = {}
    if update:
        more["update"] = [prepared_digest(update.run / "data"), update.replay, update.rows]
        more |= {"learnt": "validation, too"} if is_refit(update.run) else {}
    return stage_key(config=config.model_dump(mode="json") | map_files(config, content_digest), **more)


def _evaluate(plan: Plan, data: PreparedData, entries: Sequence[Entry], audit: Audit | None) -> None:
    say("[bold]evaluate[/bold]")
    recipe, folder, is_refit = plan.recipe, plan.folder, len(plan.logs) > 1
    scores = evaluate_rankers(
        data,
        recipe.evaluate,
        entries,
        folder / "predictions",
        seed=recipe.seed,
        audit=audit,
        logs=logs_read(data, recipe.evaluate, entries, is_refit),
    )
    preferences = run_preferences(recipe, data, entries, folder / "preferences")
    update = measure_update(recipe, data, entries, folder / "predictions" / "update")
    best = best_on_validation(recipe, data, entries, folder / "predictions" / "validation")
    if is_first():
        now = result_inputs(folder, read_yaml(dump_recipe(recipe)), plan.inputs.data_key)
        split = recipe.evaluate.split
        values: dict[str, Any] = {METRICS: metrics_json(split, scores) | {"made_of": now}}
        values |= {PREFERENCES: preferences.to_json() | {"split": split}} if preferences else {}
        values |= {UPDATE: update} if update else {}
        values |= {BEST: best.to_json()} if best else {}
        write_results(folder, scores.predictions, values)
