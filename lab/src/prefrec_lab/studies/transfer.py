"""Study: adapters trained on one data set, asked about another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.entry import lm_entry
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import ZERO_SHOT, Recipe
from prefrec.pipeline.score import ask_models
from prefrec.report.wording import label
from prefrec_lab.studies.alignments import variant
from prefrec_lab.studies.groups import grouped_table
from prefrec_lab.studies.measure import Measured, measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import interval_dots, slug
from prefrec_lab.studies.study import FEWER_ROWS, Outcome, Study, Table, varied_alignment, with_alignments
from prefrec_lab.studies.tables import facts_of

Sets = Mapping[str, Sequence[Run]]
"""Name of a data set → its runs, one a seed."""


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """One S-DPO, and the model before any training beside it."""
    recipe = with_alignments(base, [variant(varied_alignment(base), "s-dpo")])
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"zero_shot": True})})


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """On each data set: its own rankers and models, and the models of all others.

    Raises:
        ConfigError: all runs are on one data set, or some data set lacks a seed that others have.
    """
    sets = sets_of(runs)
    measured = {target: _on(target, sets, folder / "asked") for target in sets}
    metric = next(iter(measured.values())).headline[-1]
    tables = [_matrix(measured, sets, metric)]
    facts = [
        f"On {target}. {s}"
        for target, of in measured.items()
        for s in facts_of(of, [model_name(n, s) for s in sets for n in trained(sets[s])], quantities=[metric])
    ]
    drawings = []
    for target, of in measured.items():
        shown = {v: i[metric] for v, i in of.intervals.items()}
        foreign = [v for v in shown if any(v.endswith(f"of {s}") for s in sets if s != target)]
        title = f"{metric_label(metric)} on {target}"
        hint = "In colour: models of other data sets. Lines: 95% intervals."
        drawings.append(interval_dots(f"{slug(metric)}-{slug(target)}", title, shown, foreign, hint))
    n = sum(of.n for of in measured.values())
    return Outcome(tables, drawings, facts, n, sum(of.users for of in measured.values()), [_sizes(sets), *_NOTES])


def sets_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each data set, by seed; data sets of one source are told apart by the names of their recipes.

    Raises:
        ConfigError: there is only one data set, or some data set lacks a seed that others have.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(run.recipe.data.model_dump(mode="json"), sort_keys=True), []).append(run)
    found: dict[str, list[Run]] = {}
    sources = [str(of[0].data.protocol.get("source")) for of in grouped.values()]
    for source, of in zip(sources, grouped.values(), strict=True):
        name = source if sources.count(source) == 1 else of[0].recipe.name
        found[name if name not in found else of[0].folder.name] = sorted(of, key=lambda r: r.recipe.seed)
    if len(found) < 2:
        raise ConfigError(f"transfer needs runs on two or more data sets, got {', '.join(found)} alone")
    seeds = {name: [r.recipe.seed for r in of] for name, of in found.items()}
    if len({tuple(s) for s in seeds.values()}) > 1:
        told = "; ".join(f"{name}: {', '.join(map(str, s))}" for name, s in seeds.items())
        raise ConfigError(f"transfer compares runs of the same seeds on each data set, got {told}")
    return found


def trained(runs: Sequence[Run]) -> list[str]:
    """The models whose transfer is tried: what alignments start from, and the last alignment."""
    names = [n for n in runs[0].models if n != ZERO_SHOT and all(n in r.models for r in runs)]
    start = [n for n in names if n == runs[0].start]
    return list(dict.fromkeys([*start, *names[-1:]]))


def model_name(model: str, source: str) -> str:
    """A model of a data set as a row of the tables."""
    return f"{label(model)} of {source}"


def _on(target: str, sets: Sets, cache: Path) -> Measured:
    """Everything that is asked about one data set, held against the base that was trained on none."""
    runs = sets[target]
    own = of_rankers(runs)
    models = trained(runs)
    asked = {model_name(n, target) if n in models else n: frames for n, frames in own.items()}
    for source in sets:
        if source != target:
            asked |= _ask(sets[source], runs, source, cache / slug(target) / slug(source))
    users = next(iter(own.values()))[0]["user_id"].to_list()
    baseline = ZERO_SHOT if ZERO_SHOT in asked else model_name(models[-1], target) if models else None
    return measure(ranking_values(asked, runs[0].recipe.evaluate.ks), users, baseline=baseline)


def _ask(sources: Sequence[Run], targets: Sequence[Run], source: str, cache: Path) -> dict[str, list[pl.DataFrame]]:
    """Predictions of the models of one data set for the rows under test of another, seed by seed."""
    names = trained(sources)
    found: dict[str, list[pl.DataFrame]] = {model_name(n, source): [] for n in names}
    for theirs, ours in zip(sources, targets, strict=True):
        section = ours.recipe.evaluate.model_copy(update={"generate_rows": 0})
        rows = ours.data.some(section.split, section.rows)
        model = theirs.recipe.model
        entries = [lm_entry(n, theirs.entry(n).weights, ours.data, model) for n in names]
        place = cache / f"seed-{theirs.recipe.seed}"
        frames = ask_models(ours.data, section, entries, rows, place, seed=ours.recipe.seed)
        for name, frame in zip(found, frames, strict=True):
            found[name].append(frame.sort("row"))
    return found


def _matrix(measured: Mapping[str, Measured], sets: Sets, metric: str) -> Table:
    """Models by source, then the target's own rankers, × data sets that they were asked about."""
    return grouped_table(
        measured,
        metric,
        name="table",
        title="on each data set",
        note=_NOTE,
        group="on",
        variants=[model_name(n, s) for s in sets for n in trained(sets[s])],
    )


def _sizes(sets: Sets) -> str:
    told = (f"{name}: {len(of[0].data.catalogue):,} items, domain {of[0].data.domain}" for name, of in sets.items())
    return f"Data sets: {'; '.join(told)}. Prompts speak of the domain that is asked about."


_NOTE = (
    "“Model of A” was trained on A alone. Rankers without a data set to their name are those of the data set asked "
    "about, trained on it where they are trained at all. In brackets 95% intervals by bootstrap over users."
)
_NOTES = (
    "A gain over the base that was trained on nothing need not be taste: it may be the form of the question, which "
    "all data sets share.",
    "Rows and users are counted on each data set and added up.",
)

TRANSFER = Study(
    "transfer",
    "Does an adapter that learnt from one kind of items help with another?",
    "the data set that SFT and S-DPO were trained on, and the one that is asked about; recipe and base are the same.",
    vary,
    analyse,
    reads_any_run=True,
    many_data=True,
    overrides=(*FEWER_ROWS, "evaluate.rows=200"),
)
