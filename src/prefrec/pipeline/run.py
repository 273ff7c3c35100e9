"""From a recipe to a finished run: prepare → sft → align → evaluate → report, each stage only if it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from prefrec.console import say
from prefrec.data import PreparedData, prepare, prepared_digest, read_prepared, write_prepared
from prefrec.errors import ConfigError
from prefrec.evaluation import write_predictions
from prefrec.files import content_digest, read_json, write_json, write_text
from prefrec.pipeline.encoders import shown_items
from prefrec.pipeline.entry import WEIGHTS, Entry, Ingredients, due, lm_entry
from prefrec.pipeline.evaluate import evaluate_rankers, metrics_json
from prefrec.pipeline.kinds import SEQUENTIAL, ranker_kind
from prefrec.pipeline.preferences import run_preferences
from prefrec.pipeline.recipe import RANKERS, SFT, ZERO_SHOT, AlignSection, Recipe, SFTSection, dump_recipe, map_files
from prefrec.pipeline.rows import check_rows, trained_sections, warn_of_idle_dropout
from prefrec.pipeline.train import train_align, train_sft
from prefrec.pipeline.update import UPDATE, measure_update, split_change, start_entry
from prefrec.processes import is_first
from prefrec.report import write_report
from prefrec.runs.contents import METRICS, PREFERENCES, made_of
from prefrec.runs.lock import run_lock
from prefrec.runs.stage import machine, refuse_name, stage, stage_key
from prefrec.training.section import RowsSection

STAGES = ("prepare", SEQUENTIAL, SFT, "align", RANKERS, "evaluate", "report")


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    until: str = "report",
    under_test: Callable[[PreparedData], PreparedData] | None = None,
) -> Path:
    """Carry out a recipe in `folder` up to the stage `until`; return the report, or the folder without a report.

    A stage whose inputs have not changed is skipped, and an interrupted one resumes. Of many processes (`accelerate
    launch`) all train and score, and the first one writes the files. `under_test` chooses rows for the evaluation.
    Raise ConfigError if a stage is unknown, badly named or without rows, or if another run works in the folder.
    """
    if until not in STAGES:
        raise ConfigError(f"unknown stage {until!r}: expected one of {', '.join(STAGES)}")
    for name in (*(s.name for s in recipe.align), *(r.name for r in recipe.rankers)):
        refuse_name(name)
    wanted = STAGES[: STAGES.index(until) + 1]
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        if is_first():
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
            write_json(folder / "environment.json", machine() | {"seed": recipe.seed})
        data = prepare_stage(recipe, folder / "data")
        if until != "prepare":
            check_rows(recipe, data)
            warn_of_idle_dropout(recipe.lora, trained_sections(recipe))
        key = prepared_digest(folder / "data")
        entries = _make_rankers(recipe, data, key, folder, wanted)
        if "evaluate" in wanted:
            _evaluate(recipe, under_test(data) if under_test else data, key, folder, entries)
        return write_report(folder) if "report" in wanted and is_first() else folder


def _make_rankers(
    recipe: Recipe, data: PreparedData, data_key: str, folder: Path, wanted: Sequence[str]
) -> list[Entry]:
    """Return the rankers of the table, after the training of those that are wanted."""
    shared = Ingredients(data, data_key, recipe.model, recipe.lora, recipe.seed, recipe.evaluate.batch_size)
    entries: list[Entry] = []
    for config in recipe.sequential if SEQUENTIAL in wanted else []:
        entries.append(ranker_kind(SEQUENTIAL).stage(shared, config, folder / SEQUENTIAL / config.model, {}))
    entries += [lm_entry(ZERO_SHOT, None, data, recipe.model)] if recipe.evaluate.zero_shot else []
    entries += train_stages(recipe, shared, folder, wanted, entries)
    for config in recipe.rankers if RANKERS in wanted else []:
        before = {e.name: e for e in entries}
        entries.append(ranker_kind(config.kind).stage(shared, config, folder / RANKERS / config.name, before))
    return entries


def prepare_stage(recipe: Recipe, folder: Path) -> PreparedData:
    """Return the recipe's data, prepared in `folder` or found there."""
    config, update = recipe.data, recipe.update
    more = {"update": [prepared_digest(update.run / "data"), update.replay, update.rows]} if update else {}
    key = stage_key(config=config.model_dump(mode="json") | map_files(config, content_digest), **more)
    if due(folder, key, "prepare"):
        with stage(folder, key, "prepare", config.model_dump(mode="json")):
            if is_first():
                made = prepare(config, split_change(update, config.seed) if update else None, as_codes=True)
                write_prepared(made, folder)
                say(escape("\n".join(f"• {line}" for line in made.summary)))
    data = read_prepared(folder)
    shown_items(recipe.model, data.catalogue)  # raises an error before any training
    return data


def train_stages(
    recipe: Recipe,
    made_of: Ingredients,
    folder: Path,
    wanted: Sequence[str],
    before: Sequence[Entry] = (),
    start: Entry | None = None,
    *,
    plan: bool = False,
) -> list[Entry]:
    """Carry out the wanted training stages (names in `STAGES`) of a language model, and return their rankers.

    `before` are rankers that an alignment may take its negatives from. The first stage continues from `start`. If
    `plan` is set, nothing is trained, and the rankers are those that a run would have.
    """
    if recipe.sft is not None and SFT in wanted:
        start = start or start_entry(recipe, made_of.data, folder)
        start = sft_stage(made_of, recipe.sft, folder / SFT, start, plan=plan)
    judges = {e.name: e for e in before}
    aligned: dict[str, Entry] = {}
    for section in recipe.align if "align" in wanted else []:
        first = start if section.start is None else aligned[section.start]
        judge, out = judges.get(section.negatives_judge or ""), folder / "align" / section.name
        aligned[section.name] = align_stage(made_of, section, first, out, judge, folder / "reference", plan=plan)
    return [*([start] if start else []), *aligned.values()]


def sft_stage(
    made_of: Ingredients, section: SFTSection, out: Path, start: Entry | None = None, *, plan: bool = False
) -> Entry:
    """Carry out SFT in the folder `out`, from the weights of `start` or from the base, unless this is the `plan`."""
    train = partial(train_sft, made_of, section, out, start.weights if start else None)
    return _lm_stage(made_of, SFT, section, start, out, {}, train, plan)


def align_stage(
    made_of: Ingredients,
    section: AlignSection,
    start: Entry | None,
    out: Path,
    judge: Entry | None = None,
    references: Path | None = None,
    *,
    plan: bool = False,
) -> Entry:
    """Carry out an alignment in the folder `out`, from the weights of `start` or from the base, like `sft_stage`.

    The reference's log-probabilities go to the folder `references`, which alignments can share, or to `out`. Raise
    ConfigError if a sequential recommender chooses the negatives, and `judge` is None.
    """
    if section.negatives_judge and judge is None:
        raise ConfigError(f"negatives_from: {section.negatives_from} needs a recipe that trains the recommender")
    judge = judge if section.negatives_judge else None
    weights = start.weights if start else None
    train = partial(train_align, made_of, section, weights, out, judge=judge, references=references)
    own = {f"{SEQUENTIAL}.{judge.name}": judge.key} if judge else {}
    return _lm_stage(made_of, f"align.{section.name}", section, start, out, own, train, plan)


def _lm_stage(
    made_of: Ingredients,
    part: str,
    section: RowsSection,
    start: Entry | None,
    out: Path,
    more: dict[str, Any],
    train: Callable[[], object],
    plan: bool,
) -> Entry:
    """Train a language model, unless this is a plan or it is done; `part` of the recipe and `more` decide it."""
    own = {**more, part: section.decisive()}
    if start is not None:
        own |= {"start": start.key, **{n: v for n, v in start.inputs.items() if n == SFT or "." in n}}
    inputs, (kind, _, name) = made_of.inputs(**own), part.partition(".")
    entry = lm_entry(name or kind, out / WEIGHTS, made_of.data, made_of.model, inputs)
    if not plan and due(out, entry.key, entry.name):
        with stage(out, entry.key, kind, section.model_dump(), made_with=inputs):
            train()
    return entry


def _evaluate(recipe: Recipe, data: PreparedData, data_key: str, folder: Path, entries: Sequence[Entry]) -> None:
    say("[bold]evaluate[/bold]")
    scores = evaluate_rankers(data, recipe.evaluate, entries, folder / "predictions", seed=recipe.seed)
    if is_first():
        now = made_of(folder, yaml.safe_load(dump_recipe(recipe)), data_key)
        if read_json(folder / METRICS).get("made_of") != now:
            # A kill after this line must not leave metrics beside predictions that they do not belong to.
            (folder / METRICS).unlink(missing_ok=True)
        write_predictions(scores.predictions, folder / "predictions.parquet")
        write_json(folder / METRICS, metrics_json(recipe.evaluate.split, scores) | {"made_of": now})
        (folder / PREFERENCES).unlink(missing_ok=True)
        (folder / UPDATE).unlink(missing_ok=True)
    preferences = run_preferences(recipe, data, entries, folder / "preferences")
    if preferences is not None and is_first():
        write_json(folder / PREFERENCES, preferences.to_json() | {"split": recipe.evaluate.split})
    if (update := measure_update(recipe, data, entries, folder / "predictions" / "update")) and is_first():
        write_json(folder / UPDATE, update)
