"""A run that continues an earlier one: its training data, its initial weights, and what it forgets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
from rich.markup import escape

from prefrec.console import say, warn
from prefrec.data import PreparedData, RankingExample, read_prepared
from prefrec.data.rows import spread
from prefrec.data.times import log_end
from prefrec.data.types import LOG_SCHEMA
from prefrec.data.update import update_split
from prefrec.evaluation import Evaluation, NoAudit, evaluate_predictions
from prefrec.files import content_digest
from prefrec.intake.cuts import Change
from prefrec.pipeline.score import predict_stages
from prefrec.recipe import Recipe, load_recipe
from prefrec.runs.served import REFIT, read_served
from prefrec.runs.stage import check_whole, read_state
from prefrec.sections import SFT, UpdateSection
from prefrec.stages.base import MADE_WITH, WEIGHTS, Loaded, RankerStage
from prefrec.stages.inputs import adapter_key
from prefrec.stages.language_model import LMStage

OLD = 180 * 86_400
"""Seconds before the end of a log from which a new interaction is old."""
_MANY = 0.1
"""Share of new interactions from which old ones are told: a few may be late."""
GROUPS = {
    "old": "test examples of the old run that the update did not train on",
    "newest": "test examples whose targets the old run does not know",
}
"""Groups of examples that an update is measured on → description."""


def split_change(update: UpdateSection, seed: int) -> Change:
    """Return the function that turns the split of a longer log into that of an update."""
    data, held_out = _earlier(update)
    learnt = data.train_interactions
    if is_refit(update.run):
        learnt = pl.concat([learnt, data.validation_interactions], how="diagonal")
    return partial(update_split, learnt=learnt, held_out=data.targets(held_out), replay=update.replay, seed=seed)


def warn_of_changes(earlier: PreparedData, later: PreparedData) -> None:
    """Warn of what is new in an update's data and probably not meant.

    These are new interactions much older than the end of the earlier log, as of a wrong file or year, and items whose
    titles have changed, as where ids are given out again.
    """
    if earlier.has_dates and later.has_dates:
        known, whole = (
            pl.concat(log.select(pl.col(c).cast(kind) for c, kind in LOG_SCHEMA.items()) for log in data.logs)
            for data in (earlier, later)
        )
        new = whole.join(known, on=[*LOG_SCHEMA], how="anti")["timestamp"]
        end = log_end(known["timestamp"].sort().to_numpy())
        old = int((new < end - OLD).sum())
        if old >= _MANY * len(new) > 0:
            warn(
                f"update: {old:,} of {len(new):,} new interactions are more than {OLD // 86_400} days older than the "
                "end of the log before; check that they are the file and the times that you meant"
            )
    old_titles, titles = earlier.catalogue.titles, later.catalogue.titles
    changed = [item for item in titles if old_titles.get(item, titles[item]) != titles[item]]
    if changed:
        first, both = changed[0], len(titles.keys() & old_titles.keys())
        others = {title: item for item, title in old_titles.items()}
        exchanged = sum(others.get(titles[item], item) != item for item in changed)
        more = f", and {exchanged:,} of the titles were those of other items: are ids exchanged?" if exchanged else ""
        warn(
            escape(
                f"update: {len(changed):,} of {both:,} items have another title than in the run before, such as "
                f"{first!r} (before {old_titles[first]!r}, now {titles[first]!r}){more}"
            )
        )


def start_stage(recipe: Recipe, data: PreparedData, folder: Path) -> LMStage | None:
    """Return the weights that an update's SFT starts from; None if the recipe is not an update."""
    if recipe.update is None:
        return None
    weights = trained_folder(recipe.update.run, SFT) / SFT / WEIGHTS
    if weights.is_dir():
        check_whole(weights.parent)
    if not weights.is_dir() and (key := read_state(folder / SFT).get(MADE_WITH, {}).get("start")):
        return LMStage("start", weights, data, recipe.model, key=key)  # the earlier run may be deleted by now
    # The key of the SFT that starts from them names the base model itself.
    return LMStage("start", weights, data, recipe.model, key=adapter_key(weights, data))


NO_AUDIT = NoAudit("one model before and after the update is compared on the same candidate sets, so neither gains")


def measure_update(
    recipe: Recipe, data: PreparedData, stages: Sequence[RankerStage], cache: Path
) -> dict[str, Evaluation]:
    """Return the comparison of the last language models before and after an update, on each of `GROUPS`.

    Predictions are kept in the folder `cache`. Return {} if the recipe is not an update.
    """
    if recipe.update is None:
        return {}
    earlier, held_out = _earlier(recipe.update)
    known = {key for log in earlier.logs for key in log.select(*data.identity).iter_rows()}
    rows = data.examples("test", None)
    is_known = [key in known for key in data.targets(rows).iter_rows()]
    unknown = [example for example, skip in zip(rows, is_known, strict=True) if not skip]
    newest = [unknown[row] for row in spread(unknown, recipe.update.rows)]
    old = _within(held_out, data.catalogue.index)
    if len(old) < len(held_out):
        say(
            f"update: {len(held_out) - len(old)} of {len(held_out)} old test examples are left out, because their "
            "targets are not in the catalogue any more"
        )
    groups = dict(zip(GROUPS, (old, newest), strict=True))
    after = [stage for stage in stages if stage.model][-1]
    aligned = load_recipe(recipe.update.run / "recipe.yaml").align
    folder, name = (f"align/{aligned[-1].name}", aligned[-1].name) if aligned else (SFT, SFT)
    weights = trained_folder(recipe.update.run, name) / folder / WEIGHTS
    check_whole(weights.parent)
    inputs = {**after.made_with, "weights": content_digest(weights)}
    before = LMStage(f"{name} before", weights, data, recipe.model, inputs)
    models = [Loaded(model) for model in (before, after)]  # loading encodes the titles of new items
    section = recipe.evaluate.model_copy(update={"generate_rows": 0})
    measured = {}
    for group, rows in groups.items():
        if rows:
            answers = pl.concat(predict_stages(data, section, models, rows, cache / group, seed=recipe.seed))
            pair = [(after.name, models[0].name)]
            measured[group] = evaluate_predictions(answers, audit=NO_AUDIT, ks=section.ks, compare=pair)
    return measured


def is_refit(run: Path, ranker: str = SFT) -> bool:
    """Return True if a ranker of a run has also learnt its validation interactions."""
    section = load_recipe(run / "recipe.yaml").refit if (run / "recipe.yaml").is_file() else None
    if section is None or (section.rankers == "served" and ranker not in (read_served(run) or ())):
        return False
    return not read_prepared(run / "data").validation_interactions.is_empty()


def trained_folder(run: Path, ranker: str) -> Path:
    """Return the folder with the stage that a ranker of a finished run comes from: the run's, or its refit's."""
    return run / REFIT if is_refit(run, ranker) else run


def _earlier(update: UpdateSection) -> tuple[PreparedData, list[RankingExample]]:
    """Return the data of the run that an update continues, and the test examples that are held out."""
    check_whole(update.run / "data")
    data = read_prepared(update.run / "data")
    return data, data.examples("test", min(update.rows, (len(data.test) + 1) // 2))


def _within(rows: Sequence[RankingExample], items: Collection[str]) -> list[RankingExample]:
    """Return the examples whose target is one of `items`, without other items in history and candidates."""
    kept = []
    for example in rows:
        if example.target in items:
            history = tuple(item for item in example.history if item in items)
            candidates = tuple(item for item in example.candidates if item in items)
            kept.append(replace(example, history=history, candidates=candidates, history_times=()))
    return kept
