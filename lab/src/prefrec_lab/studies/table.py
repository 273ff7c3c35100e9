"""Study: every system of the paper's table on the same lists, with the audit's verdict above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from prefrec.evaluation import Audit, Evaluation, PairedDifference, audit_prepared
from prefrec.evaluation.tables import FULL_METRICS, metric_label
from prefrec.files import read_json
from prefrec.pipeline.encoders import shows_candidates
from prefrec.pipeline.opened import Run, start_of
from prefrec.pipeline.recipe import RANKERS, SEQUENTIAL, SFT, ZERO_SHOT, Recipe
from prefrec.rankers.fuse import FuseConfig
from prefrec.rankers.retrieve import RetrieveThenRankConfig
from prefrec.report.tables import Grid
from prefrec.report.wording import clock, includes_zero, label, with_interval
from prefrec.runs.contents import METRICS
from prefrec.runs.stage import STAGE_FILE, taken
from prefrec_lab.studies.cost import training_seconds
from prefrec_lab.studies.measure import Measured, Values, measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import dots
from prefrec_lab.studies.study import Outcome, Study, Table, as_it_is
from prefrec_lab.studies.tables import difference_cell, plain_table, results_table


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Every ranker of the runs, each compared with the last language model of the main line (S-DPO)."""
    first = runs[0]
    predictions = of_rankers(runs)
    users = next(iter(predictions.values()))[0]["user_id"].to_list()
    judged = [n for n in first.models if n in predictions]
    baseline = judged[-1] if judged else None
    values = ranking_values(predictions, first.recipe.evaluate.ks)
    measured = measure(values, users, baseline=baseline)
    settings = {n: {"kind": kind_of(first, n), "training": clock(seconds_of(first, n))} for n in predictions}
    title = f"Every system on {first.data.protocol.get('source')}"
    main = results_table(measured, settings=settings, title=title, first="System")
    audit = audit_prepared(first.data, first.recipe.evaluate.split, "train", first.recipe.seed)
    drawings = [dots(measured, q, judged, metric_label(q)) for q in measured.headline]
    facts = [audit.verdict, *ranking_facts(measured)]
    pairs = {name: base for name, base in built_on(first.recipe).items() if {name, base} <= values.keys()}
    gains = [gains_table(values, users, pairs)] if pairs else []
    tables = [main, *gains, *full_catalogue_tables(first), audit_table(audit)]
    return Outcome(tables, drawings, facts, measured.n, measured.users, notes_of(first.recipe))


def kind_of(run: Run, name: str) -> str:
    """What a ranker is: a reference row, a sequential recommender, a stage of the language model, or its kind."""
    recipe = run.recipe
    if name in recipe.evaluate.references:
        return "reference"
    if name in [s.model for s in recipe.sequential]:
        return "sequential"
    return next((r.kind for r in recipe.rankers if r.name == name), "language model")


def seconds_of(run: Run, name: str) -> float | None:
    """Seconds of all training stages of a model of the main line, of another system's own stage; None: not known.

    Nothing is trained for retrieve-then-rank and fuse.
    """
    if name in run.models:
        return training_seconds(run, name)
    if kind_of(run, name) in (RetrieveThenRankConfig().kind, FuseConfig().kind):
        return None
    states = [read_json(run.folder / part / name / STAGE_FILE) or {} for part in (SEQUENTIAL, RANKERS)]
    return next((taken(s, "seconds") for s in states if s.get("finished")), None)


def ranking_facts(measured: Measured) -> list[str]:
    """Two sentences a headline metric: which system is highest, and which ones are told apart from the baseline."""
    facts = []
    for quantity in measured.headline:
        heading = metric_label(quantity)
        means = {n: of[quantity] for n, of in measured.intervals.items()}
        best = max(means, key=lambda n: means[n].mean)
        facts.append(f"{heading}: the highest is {label(best)}, {with_interval(means[best])}.")
        if measured.baseline is None:
            continue
        gaps = {n: of[quantity] for n, of in measured.differences.items()}
        above = [label(n) for n, d in gaps.items() if d.low > 0]
        below = [label(n) for n, d in gaps.items() if d.high < 0]
        neither = [label(n) for n, d in gaps.items() if includes_zero(d)]
        told = [
            f"{words} {', '.join(names)}"
            for words, names in (("below", above), ("above", below), ("not told apart from", neither))
            if names
        ]
        if told:
            own = with_interval(means[measured.baseline])
            facts.append(f"{heading}: {label(measured.baseline)} ({own}) is {'; '.join(told)}.")
    return [f.replace("\u00a0", " ") for f in facts]


def built_on(recipe: Recipe) -> dict[str, str]:
    """System → the one that it starts from, or whose answers it reorders; systems of their own are left out."""
    found = {} if recipe.sft is None else {SFT: ZERO_SHOT}
    found |= {a.name: start_of(recipe) for a in recipe.align}
    for config in recipe.rankers:
        base = getattr(config, "retriever", None) or getattr(config, "reference", None)
        base = ZERO_SHOT if config.kind == "llara" else base
        if base is not None:
            found[config.name] = base
    return found


def gains_table(values: Values, users: Sequence[str], pairs: Mapping[str, str]) -> Table:
    """What each system adds to the one that it builds on, on the same rows: the headline metrics, paired."""
    rows, found = [], []
    for name, base in pairs.items():
        measured = measure({base: values[base], name: values[name]}, users, baseline=base)
        gaps = {q: measured.differences[name][q] for q in measured.headline}
        rows.append((f"{label(name)} − {label(base)}", [difference_cell(d) for d in gaps.values()], ""))
        found += [{"variant": name, "against": base, "quantity": q, **d.to_json()} for q, d in gaps.items()]
    headings = [metric_label(q) for q in dict.fromkeys(str(r["quantity"]) for r in found)]
    title = "What each system adds to the one that it builds on"
    frame = pl.DataFrame(found, infer_schema_length=None)
    return Table("gains", title, "Difference", Grid(headings, rows), frame, _GAINS_NOTE)


def full_catalogue_tables(run: Run) -> list[Table]:
    """Return the table of the rankers that were asked about the whole catalogue; none where the run asked none."""
    told = (read_json(run.folder / METRICS) or {}).get("full_catalogue")
    if told is None:
        return []
    full = Evaluation.from_json(told)
    shown = {n: {m: of[m] for m in FULL_METRICS if m in of} for n, of in full.metrics.items()}
    gaps: dict[str, dict[str, PairedDifference]] = {}
    for c in full.comparisons:
        if c.against == full.best_reference and c.metric in FULL_METRICS:
            gaps.setdefault(c.ranker, {})[c.metric] = c.difference
    by_seed = {n: {m: [i.mean] for m, i in of.items()} for n, of in shown.items()}
    measured = Measured(shown, gaps, by_seed, full.best_reference, full.n, full.users)
    return [results_table(measured, name="full-catalogue", title="Over the whole catalogue", first="System")]


def audit_table(audit: Audit) -> Table:
    """What shortcuts that know no user reach on the same lists."""
    rows = [
        {
            "shortcut": row.name,
            "HR@1": row.hr.mean,
            "low": row.hr.low,
            "high": row.hr.high,
            "finding": row.finding,
        }
        for row in audit.rows
    ]
    return plain_table("audit", "What shortcuts reach", "Shortcut", pl.DataFrame(rows), audit.verdict)


def notes_of(recipe: Recipe) -> list[str]:
    """What the systems of a recipe share, and what they do not."""
    found = [
        "All systems learn from the training part of one split, each from as many rows as its recipe gives it, and "
        "are asked about the same lists."
    ]
    if recipe.sft and not shows_candidates(recipe.model, recipe.data.domain or "generic"):
        main = [label(n) for n in recipe.lm_rankers if n != ZERO_SHOT]
        found.append(f"{', '.join(main)} have read whole histories, of which every title was a target.")
    if bare := [r.name for r in recipe.rankers if r.kind in ("llara", "tallrec")]:
        found.append(
            f"{', '.join(bare)} start from the bare base and learn from ranking questions, as in their papers."
        )
    whole = [s.model for s in recipe.sequential] + [r.name for r in recipe.rankers if r.kind == "morec"]
    if whole:
        found.append(f"Sequential models ({', '.join(whole)}) see all training interactions.")
    return [*found, _TRAINING_NOTE, _SIZE_NOTE]


_TRAINING_NOTE = (
    "Training: wall time of the first seed. Language models of the main line count all their stages; other systems "
    "their own stage alone, without the models that it builds on. A dash: nothing is trained, or no time is known."
)
_SIZE_NOTE = "The small language model and the small budgets of this recipe are not those of the paper."

_GAINS_NOTE = (
    "On the same rows and lists; in brackets 95% intervals by bootstrap over users, not corrected for the number of "
    "comparisons."
)

TABLE = Study(
    "table",
    "How do all systems of the paper's table compare under one protocol?",
    "the system, and with it what it starts from and how much it learns from; the split, the lists under test, "
    "metrics and resamples are the same for all.",
    as_it_is,
    analyse,
    reads_any_run=True,
    base="table.yaml",
)
