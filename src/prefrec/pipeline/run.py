"""Run a recipe: prepare → sft → align → evaluate → report. Stages that are up to date are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from prefrec import processes
from prefrec.console import quiet_warnings, say
from prefrec.data import PreparedData
from prefrec.errors import ConfigError, did_you_mean
from prefrec.evaluation import Audit
from prefrec.evaluation.best import Best
from prefrec.extras import need
from prefrec.files import make_folder, read_json, write_json, write_text
from prefrec.lm.names import check_name
from prefrec.pipeline.audited import audit_under_test
from prefrec.pipeline.best import best_on_validation
from prefrec.pipeline.checks import (
    check_rows,
    check_titles,
    trained_sections,
    warn_of_idle_dropout,
    warn_of_missing_layers,
)
from prefrec.pipeline.measure import evaluate_rankers, logs_read
from prefrec.pipeline.measure_preferences import run_preferences
from prefrec.pipeline.opened import Run
from prefrec.pipeline.plan import Plan, planned, stage_folder, stage_names
from prefrec.pipeline.prepare import PrepareStage
from prefrec.pipeline.price import Price, price
from prefrec.pipeline.update import measure_update
from prefrec.processes import is_first
from prefrec.recipe import Recipe, dump_recipe, reached
from prefrec.report import write_report
from prefrec.report.wording import clock
from prefrec.runs.contents import read_run, result_inputs
from prefrec.runs.lock import reader_lock, run_lock
from prefrec.runs.results import Results, write_results
from prefrec.runs.served import REFIT, write_served
from prefrec.runs.stage import machine, read_state, refuse_name
from prefrec.sections import ALIGN, RANKERS, SFT, ZERO_SHOT
from prefrec.stages.base import RankerStage
from prefrec.strict_yaml import read_yaml

IF_SERVED = "if it serves"
"""Why a stage of a refit has to run while nothing is chosen."""
STAGES = ("prepare", SFT, ALIGN, RANKERS, "evaluate", "report")


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    until: str = "report",
    under_test: Callable[[PreparedData], PreparedData] | None = None,
    equal_logs: bool = False,
) -> Run:
    """Run a recipe, and return the run.

    A stage whose inputs have not changed is skipped; an interrupted stage resumes. With many processes (`accelerate
    launch`) all of them train and score, and the first one writes the files.

    Args:
        recipe: all settings of the run.
        folder: of the run; it is created.
        until: the last stage: one of `STAGES`, or the name of a ranker, which is made with its dependencies.
        under_test: replaces the data of the evaluation, for example by data with fewer test examples.
        equal_logs: without `refit`, let baselines count the training log alone, as trained rankers do. Parts of a
            blend still count what is known before test examples.

    Returns:
        The run, as `open_run` would open it.

    Raises:
        ConfigError: a stage is unknown, has a reserved name or no examples, or another run works in the folder.
    """
    _check_until(recipe, until)
    for section, entries in ((ALIGN, recipe.align), (RANKERS, recipe.rankers)):
        for entry in entries:
            refuse_name(entry.name)
            if entry.name in STAGES:
                raise ConfigError(
                    f"{section}.{entry.name}.name: a part of each run is called {entry.name!r}, and `--until "
                    f"{entry.name}` means that part; choose another name"
                )
    if recipe.lm_rankers and until != "prepare":
        need("lm", f"a language model ({', '.join(recipe.lm_rankers)})")
        for name in _models(recipe):
            check_name(name)
    make_folder(folder)
    earlier = reader_lock(recipe.update.run) if recipe.update else nullcontext()
    with quiet_warnings(), run_lock(folder), earlier:
        if is_first():
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
            _write_environment(folder, recipe.seed)
        data = PrepareStage(recipe, folder / "data").prepared()
        if until == "prepare":
            return Run.of(read_run(folder, data), recipe, data)
        check_rows(recipe, data)
        warn_of_idle_dropout(recipe.lora, trained_sections(recipe))
        warn_of_missing_layers(recipe.model, data.domain)
        measured = until in ("evaluate", "report")
        plan = planned(recipe, data, folder)
        if trained_sections(recipe) and plan.stale():
            check_titles(data, recipe.model)
        key = plan.inputs.data_key
        audit = audit_under_test(data, recipe.evaluate, recipe.seed, key=key, folder=folder) if measured else None
        if cost := price(plan, until):
            say(escape(str(cost)))
        wanted = plan.until(RANKERS if measured else until)
        for stage in plan.stages(wanted):
            if not stage.first:
                stage.run()
        rows, best = under_test(data) if under_test else data, None
        if measured:
            # Chosen before the refit, because the choice says what is refit.
            best = _best(plan, rows)
            plan = _serving(plan, best)
        for stage in plan.stages(wanted):
            if stage.first:
                stage.run()
        results = None
        if measured:
            audit = None if under_test else audit
            results = _evaluate(plan, rows, [plan.stage(name) for name in plan.names], audit, equal_logs, best)
            plan.end_evaluation()
        if is_first():
            _write_environment(folder, recipe.seed)  # again, with what the stages have loaded
        contents = read_run(folder, data, results)
        if until == "report" and is_first():
            write_report(contents)
        return Run.of(contents, recipe, data, plan)


def _best(plan: Plan, data: PreparedData) -> Best | None:
    """Return the best ranker on validation examples, which answers by default."""
    stages = [plan.logs[0].on_log(name) for name in plan.names]
    cache = plan.folder / "predictions" / "validation"
    return best_on_validation(plan.recipe, data, stages, cache, plan.inputs.baselines)


def _serving(plan: Plan, best: Best | None) -> Plan:
    """Return the plan in which what serves is refit, and write its names; the plan itself if all rankers are refit.

    Without validation examples nothing is chosen, so that any ranker may serve.
    """
    if plan.served is None or len(plan.logs) == 1:
        return plan
    served = plan.used(*best.defaults) if best else plan.names
    if is_first():
        write_served(plan.folder, served)
    processes.wait()
    others = [name for name in plan.names if name not in served and plan.stage(name).makes_files]
    if others:
        say(escape(f"refit: only of what serves, so without {', '.join(others)} (`refit: true` refits all)"))
    return replace(plan, served=served)


def _write_environment(folder: Path, seed: int) -> None:
    """Write versions and machine. Those of libraries that only an earlier command has loaded stay noted."""
    file = folder / "environment.json"
    write_json(file, read_json(file) | machine() | {"seed": seed})


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
    prepare = PrepareStage(recipe, folder / "data")
    stages = [_surveyed(prepare.name, prepare.folder, prepare.why(), [])]
    if until == "prepare":
        return stages
    wanted = reached(recipe.needs, *stage_names(recipe, RANKERS if until in ("evaluate", "report") else until))
    if not prepare.is_up_to_date:
        for name in wanted:
            if name != ZERO_SHOT:
                stages.append(
                    _surveyed(name, stage_folder(recipe, folder, name), "after prepare", recipe.needs[name])
                )
        # Which other rankers have a stage in the refit is known once there are data.
        for name in wanted if recipe.refit else ():
            if name in recipe.lm_rankers and name != ZERO_SHOT:
                again = stage_folder(recipe, folder / REFIT, name)
                needs = [name, *(f"{need} {REFIT}" for need in recipe.needs[name])]
                why = IF_SERVED if recipe.refit and recipe.refit.rankers == "served" else "after prepare"
                stages.append(_surveyed(f"{name} {REFIT}", again, why, needs))
        return stages
    plan = planned(recipe, prepare.read(), folder)
    is_open, plan = plan.is_open, plan.at_most
    for stage in plan.stages(wanted):
        if stage.makes_files:
            needed, why = recipe.needs[stage.name], plan.why(stage)
            if stage.first:
                needed = [need.label for need in plan.needed(stage)]
                why = IF_SERVED if is_open else why
            stages.append(_surveyed(stage.label, stage.folder, why, needed))
    return stages


def expected(recipe: Recipe, folder: Path) -> Price | None:
    """Return the estimated cost of the stages that have to run (`price`); None before the data are prepared."""
    prepare = PrepareStage(recipe, folder / "data")
    return price(planned(recipe, prepare.read(), folder)) if prepare.is_up_to_date else None


def _surveyed(name: str, folder: Path, why: str, needs: Sequence[str]) -> dict[str, Any]:
    state = read_state(folder)
    costs = {cost: state.get(cost) or None for cost in ("seconds", "peak_bytes")}
    return {"stage": name, "why": why, "needs": list(needs), **costs}


def _check_until(recipe: Recipe, until: str) -> None:
    stages = [*STAGES, *recipe.needs]
    if until not in stages:
        near = did_you_mean(until, stages)
        raise ConfigError(f"unknown stage {until!r}: expected one of {', '.join(stages)}{near}")


def _evaluate(
    plan: Plan,
    data: PreparedData,
    stages: Sequence[RankerStage],
    audit: Audit | None,
    equal_logs: bool,
    best: Best | None,
) -> Results:
    say("[bold]evaluate[/bold]")
    start = time.monotonic()
    recipe, folder = plan.recipe, plan.folder
    # Before validation examples, the training log is what is known.
    counted = "validation" if equal_logs and len(plan.logs) == 1 else recipe.evaluate.split
    results = evaluate_rankers(
        data,
        recipe.evaluate,
        stages,
        folder / "predictions",
        seed=recipe.seed,
        audit=audit,
        logs=logs_read(data, recipe.evaluate, stages, counted),
        baselines=plan.inputs.baselines,
        counted=counted,
        starts={align.name: recipe.start_of(align) or ZERO_SHOT for align in recipe.align},
    )
    results = replace(
        results,
        made_of=result_inputs(folder, read_yaml(dump_recipe(recipe)), plan.inputs.data_key),
        preferences=run_preferences(recipe, data, stages, folder / "preferences"),
        update=measure_update(recipe, data, stages, folder / "predictions" / "update"),
        best=best,
    )
    if is_first():
        write_results(folder, results)
    say(f"evaluate: {clock(time.monotonic() - start)}")
    return results
