"""Study: every system of the paper's table on the same candidate sets, with the audit's verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from prefrec.evaluation import Audit, PairedDifference, audit_prepared
from prefrec.evaluation.labels import FULL_METRICS, metric_label
from prefrec.files import read_json
from prefrec.pipeline.opened import Run
from prefrec.rankers.blend import BlendConfig
from prefrec.recipe import Recipe
from prefrec.report.tables import Grid
from prefrec.report.wording import clock, includes_zero, label, with_interval
from prefrec.runs.stage import STAGE_FILE
from prefrec.sections import RANKERS, SFT, ZERO_SHOT
from prefrec.stages.item_texts import shows_candidates
from prefrec_lab.studies.cost import training_seconds
from prefrec_lab.study_tools.measure import Measured, Values, measure, ranker_predictions, ranking_values, users_of
from prefrec_lab.study_tools.plots import dots
from prefrec_lab.study_tools.study import Outcome, Study, Table, as_it_is
from prefrec_lab.study_tools.tables import difference_cell, logs_read_note, plain_table, results_table
from prefrec_systems.retrieve import RetrieveThenRankConfig


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare every ranker of the runs with the last language-model ranker (S-DPO)."""
    first = runs[0]
    predictions = ranker_predictions(runs)
    users = users_of(predictions)
    values = ranking_values(predictions, first.recipe.evaluate.ks)
    models = [n for n in first.models if n in predictions]
    measured = measure(values, users, baseline=models[-1] if models else None)
    settings = {n: {"kind": kind_of(first, n), "training": clock(seconds_of(first, n))} for n in predictions}
    title = f"Every system on {first.data.protocol.get('source')}"
    main = results_table(measured, settings=settings, title=title, first="System")
    audit = audit_prepared(first.data, first.recipe.evaluate.split, "train", first.recipe.seed)
    drawings = [dots(measured, q, models) for q in measured.headline]
    facts = [audit.verdict, *ranking_facts(measured)]
    pairs = {name: base for name, base in built_on(first.recipe).items() if {name, base} <= values.keys()}
    gains = [gains_table(values, users, pairs)] if pairs else []
    tables = [main, *gains, *full_catalogue_tables(first), audit_table(audit)]
    return Outcome(tables, drawings, facts, measured.n, measured.users, notes_of(first))


def kind_of(run: Run, name: str) -> str:
    """Return a ranker's kind: baseline, sequential recommender, language model, or the kind in the recipe."""
    recipe = run.recipe
    if name in recipe.evaluate.baselines:
        return "reference"
    return next((r.kind for r in recipe.rankers if r.name == name), "language model")


def seconds_of(run: Run, name: str) -> float | None:
    """Return the training seconds of a system: of all stages of a language-model ranker, of one stage of others.

    None if they are unknown, or nothing is trained (retrieve-then-rank, blend).
    """
    if name in run.models:
        return training_seconds(run, name)
    if kind_of(run, name) in (RetrieveThenRankConfig().kind, BlendConfig().kind):
        return None
    state = read_json(run.folder / RANKERS / name / STAGE_FILE)
    return float(state["seconds"]) if state.get("finished") else None


def ranking_facts(measured: Measured) -> list[str]:
    """Return two sentences per headline metric: the highest system, and the differences to the baseline."""
    facts = []
    for quantity in measured.headline:
        heading = metric_label(quantity)
        means = {n: intervals[quantity] for n, intervals in measured.intervals.items()}
        best = max(means, key=lambda n: means[n].mean)
        facts.append(f"{heading}: the highest is {label(best)}, {with_interval(means[best])}.")
        if measured.baseline is None:
            continue
        gaps = {n: differences[quantity] for n, differences in measured.differences.items()}
        above = [label(n) for n, d in gaps.items() if d.low > 0]
        below = [label(n) for n, d in gaps.items() if d.high < 0]
        neither = [label(n) for n, d in gaps.items() if includes_zero(d)]
        groups = [
            f"{words} {', '.join(names)}"
            for words, names in (("below", above), ("above", below), ("not told apart from", neither))
            if names
        ]
        if groups:
            own = with_interval(means[measured.baseline])
            facts.append(f"{heading}: {label(measured.baseline)} ({own}) is {'; '.join(groups)}.")
    return [f.replace("\u00a0", " ") for f in facts]


def built_on(recipe: Recipe) -> dict[str, str]:
    """Return system → the one that it starts from, or whose answers it reorders, if there is one."""
    bases = {SFT: ZERO_SHOT} if recipe.sft and recipe.evaluate.zero_shot else {}
    bases |= {a.name: recipe.start_of(a) or ZERO_SHOT for a in recipe.align}
    for config in recipe.rankers:
        base = getattr(config, "retriever", None) or getattr(config, "reference", None)
        if config.kind in ("llara", "tallrec"):
            base = getattr(config, "start", None) or ZERO_SHOT
        if base is not None:
            bases[config.name] = base
    return bases


def gains_table(values: Values, users: Sequence[str], pairs: Mapping[str, str]) -> Table:
    """Return the paired gain of each system over the one that it builds on, in the headline metrics."""
    rows, facts = [], []
    for name, base in pairs.items():
        measured = measure({base: values[base], name: values[name]}, users, baseline=base)
        gaps = {q: measured.differences[name][q] for q in measured.headline}
        rows.append((f"{label(name)} − {label(base)}", [difference_cell(d) for d in gaps.values()], ""))
        facts += [{"variant": name, "against": base, "quantity": q, **d.to_json()} for q, d in gaps.items()]
    headings = [metric_label(q) for q in dict.fromkeys(str(r["quantity"]) for r in facts)]
    title = "What each system adds to the one that it builds on"
    frame = pl.DataFrame(facts, infer_schema_length=None)
    return Table("gains", title, "Difference", Grid(headings, rows), frame, _GAINS_NOTE)


def full_catalogue_tables(run: Run) -> list[Table]:
    """Return the table of full ranking; none if the run has no full ranking."""
    full = run.results.full_catalogue
    if full is None:
        return []
    shown = {n: {m: own[m] for m in FULL_METRICS if m in own} for n, own in full.metrics.items()}
    gaps: dict[str, dict[str, PairedDifference]] = {}
    for c in full.comparisons:
        if c.against == full.best_reference and c.metric in FULL_METRICS:
            gaps.setdefault(c.ranker, {})[c.metric] = c
    by_seed = {n: {m: [i.mean] for m, i in own.items()} for n, own in shown.items()}
    measured = Measured(shown, gaps, by_seed, full.best_reference, full.n, full.users)
    return [results_table(measured, name="full-catalogue", title="Full ranking", first="System")]


def audit_table(audit: Audit) -> Table:
    """Return the accuracy of shortcuts that ignore the user, on the same candidate sets."""
    rows = [
        {"shortcut": r.name, "HR@1": r.hr.mean, "low": r.hr.low, "high": r.hr.high, "finding": r.finding}
        for r in audit.rows
    ]
    return plain_table("audit", "What shortcuts reach", "Shortcut", pl.DataFrame(rows), audit.verdict)


def notes_of(run: Run) -> list[str]:
    """Return sentences on what the systems of a run share, and what they do not."""
    recipe = run.recipe
    notes = ["All systems rank the same lists. Each learns from as many rows as its recipe says."]
    notes += logs_read_note(run)
    if recipe.sft and not shows_candidates(recipe.model, recipe.data.domain or "generic"):
        main = [label(n) for n in recipe.lm_rankers if n != ZERO_SHOT]
        notes.append(f"{', '.join(main)} have read whole histories, of which every title was a target.")
    if systems := [r for r in recipe.rankers if r.kind in ("llara", "tallrec")]:
        starts = dict.fromkeys(label(getattr(r, "start", None) or ZERO_SHOT) for r in systems)
        names = ", ".join(r.name for r in systems)
        notes.append(f"{names} start from {', '.join(starts)} and learn from ranking questions.")
    whole = [r.name for r in recipe.rankers if r.kind in ("sequential", "morec")]
    if whole:
        notes.append(f"Sequential models ({', '.join(whole)}) see all training interactions.")
    return [*notes, _TRAINING_NOTE, _SIZE_NOTE]


_TRAINING_NOTE = (
    "Training: wall time of the first seed. Language-model rankers count all their stages, other systems only their "
    "own. A dash: nothing is trained, or the time is unknown."
)
_SIZE_NOTE = "The small language model and the small budgets of this recipe are not those of the paper."

_GAINS_NOTE = "Paired, with 95% intervals over users, not corrected for the number of comparisons."

TABLE = Study(
    "table",
    "How do all systems of the paper's table compare under one protocol?",
    "the system, and with it what it starts from and how much it learns from; the split, the lists under test, "
    "and metrics are the same for all.",
    as_it_is,
    analyse,
    reads_any_run=True,
    equal_logs=True,
    base="table.yaml",
)
