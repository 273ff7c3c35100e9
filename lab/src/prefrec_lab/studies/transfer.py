"""Study: adapters trained on one data set and queried on another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run
from prefrec.pipeline.score import predict_stages
from prefrec.recipe import Recipe
from prefrec.report.wording import label
from prefrec.sections import ZERO_SHOT
from prefrec.stages.language_model import LMStage
from prefrec_lab.studies.alignments import variant
from prefrec_lab.study_tools.measure import Measured, measure, ranker_predictions, ranking_values, users_of
from prefrec_lab.study_tools.opened import start_of
from prefrec_lab.study_tools.plots import interval_dots, slug
from prefrec_lab.study_tools.study import Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.study_tools.tables import facts_of, grouped_table

Sets = Mapping[str, Sequence[Run]]
"""Name of a data set → its runs, one per seed."""


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with one S-DPO, and the model before any training."""
    recipe = with_alignments(base, [variant(varied_alignment(base), "s-dpo")])
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"zero_shot": True})})


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare, on each data set, its own rankers and models with the models of all others.

    Raises:
        ConfigError: all runs are on one data set, or a data set lacks a seed that others have.
    """
    sets = sets_of(runs)
    measured = {target: _on(target, sets, folder / "asked") for target in sets}
    metric = next(iter(measured.values())).headline[-1]
    variants = [model_name(n, s) for s in sets for n in trained(sets[s])]
    tables = [
        grouped_table(
            measured, metric, name="table", title="on each data set", note=_NOTE, group="on", variants=variants
        )
    ]
    facts = [
        f"On {target}. {s}" for target, own in measured.items() for s in facts_of(own, variants, quantities=[metric])
    ]
    drawings = []
    for target, own in measured.items():
        shown = {v: i[metric] for v, i in own.intervals.items()}
        foreign = [v for v in shown if any(v.endswith(f"of {s}") for s in sets if s != target)]
        title = f"{metric_label(metric)} on {target}"
        hint = "In colour: models of other data sets. Lines: 95% intervals."
        drawings.append(interval_dots(f"{slug(metric)}-{slug(target)}", title, shown, foreign, hint))
    n, users = (sum(getattr(own, count) for own in measured.values()) for count in ("n", "users"))
    return Outcome(tables, drawings, facts, n, users, [_sizes(sets), *_NOTES])


def sets_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each data set, by seed. Names of recipes distinguish data sets of one source.

    Raises:
        ConfigError: there is only one data set, or a data set lacks a seed that others have.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(run.recipe.data.model_dump(mode="json"), sort_keys=True), []).append(run)
    sets: dict[str, list[Run]] = {}
    sources = [str(own[0].data.protocol.get("source")) for own in grouped.values()]
    for source, own in zip(sources, grouped.values(), strict=True):
        name = source if sources.count(source) == 1 else own[0].recipe.name
        sets[name if name not in sets else own[0].folder.name] = sorted(own, key=lambda r: r.recipe.seed)
    if len(sets) < 2:
        raise ConfigError(f"transfer needs runs on two or more data sets, got only {', '.join(sets)}")
    seeds = {name: [r.recipe.seed for r in own] for name, own in sets.items()}
    if len({tuple(s) for s in seeds.values()}) > 1:
        lists = "; ".join(f"{name}: {', '.join(map(str, s))}" for name, s in seeds.items())
        raise ConfigError(f"transfer compares runs of the same seeds on each data set, got {lists}")
    return sets


def trained(runs: Sequence[Run]) -> list[str]:
    """Return the models whose transfer is tried: the one that alignments start from, and the last alignment."""
    names = [n for n in runs[0].models if n != ZERO_SHOT and all(n in r.models for r in runs)]
    start = [n for n in names if n == start_of(runs[0].recipe)]
    return list(dict.fromkeys([*start, *names[-1:]]))


def model_name(model: str, source: str) -> str:
    """Return the name of a data set's model in the tables."""
    return f"{label(model)} of {source}"


def _on(target: str, sets: Sets, cache: Path) -> Measured:
    """Measure all models on one data set, compared with the untrained base."""
    runs = sets[target]
    own = ranker_predictions(runs)
    models = trained(runs)
    predictions = {model_name(n, target) if n in models else n: frames for n, frames in own.items()}
    for source in sets:
        if source != target:
            predictions |= _ask(sets[source], runs, source, cache / slug(target) / slug(source))
    baseline = ZERO_SHOT if ZERO_SHOT in predictions else model_name(models[-1], target) if models else None
    return measure(ranking_values(predictions, runs[0].recipe.evaluate.ks), users_of(own), baseline=baseline)


def _ask(sources: Sequence[Run], targets: Sequence[Run], source: str, cache: Path) -> dict[str, list[pl.DataFrame]]:
    """Return predictions of one data set's models for the rows under test of another, seed by seed."""
    names = trained(sources)
    predictions: dict[str, list[pl.DataFrame]] = {model_name(n, source): [] for n in names}
    for source_run, target_run in zip(sources, targets, strict=True):
        section = target_run.recipe.evaluate.model_copy(update={"generate_rows": 0})
        rows = target_run.data.examples(section.split, section.rows)
        model = source_run.recipe.model
        stages = [LMStage(n, source_run.stage(n).weights, target_run.data, model) for n in names]
        folder = cache / f"seed-{source_run.recipe.seed}"
        frames = predict_stages(target_run.data, section, stages, rows, folder, seed=target_run.recipe.seed)
        for name, frame in zip(predictions, frames, strict=True):
            predictions[name].append(frame.sort("row"))
    return predictions


def _sizes(sets: Sets) -> str:
    sizes = (
        f"{name}: {len(runs[0].data.catalogue):,} items, domain {runs[0].data.domain}" for name, runs in sets.items()
    )
    return f"Data sets: {'; '.join(sizes)}. Prompts name the domain that is asked about."


_NOTE = (
    "“Model of A” was trained only on A. Rankers without a data set in their name belong to the column’s data set. "
    "95% intervals over users."
)
_NOTES = (
    "A gain over the untrained base may come from the form of the question, which all data sets share.",
    "Rows and users are the sums over data sets.",
)

TRANSFER = Study(
    "transfer",
    "Does an adapter that learnt from one kind of items help with another kind?",
    "the data set that SFT and S-DPO were trained on, and the one that is asked about; recipe and base are the same.",
    vary,
    analyse,
    reads_any_run=True,
    many_data=True,
    overrides=(
        "model={layers: [0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29], dtype: bfloat16, templates: [history]}",
        "sft={rows: 900, epochs: 1, learning_rate: 5.0e-4, weight_decay: 0.05, titles: 50, drop: 0.1, "
        "global_batch_size: 8, eval_rows: 0}",
        "align=[{rows: 480, num_negatives: 8, learning_rate: 2.0e-5, per_device_batch_size: 4, max_grad_norm: 1.0}]",
        "evaluate.batch_size=8",
        "evaluate.rows=300",
    ),
)
