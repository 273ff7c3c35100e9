"""Study: sources of negatives for S-DPO, and how many negatives the user interacts with later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import PreparedData, RankingExample, frame_to_examples
from prefrec.data.parquet import read_parquet
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe
from prefrec.sections import AlignSection
from prefrec.stages.negatives import NEGATIVES_FILE
from prefrec.stages.training_rows import alignment_rows
from prefrec.training.negatives import false_negatives, resample_negatives
from prefrec_lab.studies.alignments import settings_of, variant
from prefrec_lab.studies.fairness import item_counts
from prefrec_lab.study_tools.measure import Measured, measure, measure_runs
from prefrec_lab.study_tools.plots import dots
from prefrec_lab.study_tools.study import SASREC, Outcome, Study, varied_alignment, with_alignments
from prefrec_lab.study_tools.tables import facts_of, results_table

SOURCES = ("list", "uniform", "popularity", "in-batch", "reference", "hard")
UNJUDGED = ("uniform", "popularity", "in-batch")
"""Sources that no trained model chooses from."""

MINER = SASREC.name
"""Sequential recommender whose hard negatives are tried."""

PAST, POPULARITY = "past", "popularity"
LABELS = {PAST: "Taken later, drawn from the row’s history alone", POPULARITY: "Training interactions of a negative"}


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with S-DPO with negatives from each of `SOURCES`, and from SASRec.

    Rows are of all places in a user's history: after the latest place hardly anything is left to take in training.
    """
    rankers = [*base.rankers] if MINER in [r.name for r in base.rankers] else [SASREC, *base.rankers]
    return from_sources(base.model_copy(update={"rankers": rankers}), [*SOURCES, f"hard-{MINER}"])


def from_sources(base: Recipe, sources: Sequence[str]) -> Recipe:
    """Return the recipe with S-DPO with negatives from each of these sources, on rows of all places in a history.

    A ranker's hard negatives have its name after `hard-`.
    """
    one, entries = varied_alignment(base), []
    for source in sources:
        way, _, miner = source.partition("hard-")
        ways: dict[str, Any] = {"negatives_from": way or "hard", "miner": miner or None}
        entries.append(variant(one, variant_name(source), **ways, latest_per_user=None))
    return with_alignments(base, entries)


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Measure by source of negatives: the metrics, and the share of negatives that the user interacts with later."""
    measured = measure_runs(runs, variant_name("list"))
    sections = runs[0].recipe.align
    settings = {
        name: {"negatives": source_of(section), "N": own["N"], "rows": own["rows"], "seconds": own["seconds"]}
        for (name, own), section in zip(settings_of(runs).items(), sections, strict=True)
    }
    false = measure_negatives(runs)
    tables = [
        results_table(measured, settings=settings, first="Variant"),
        replace(
            results_table(false, labels=LABELS, name="negatives", title="What the negatives are", first="Variant"),
            note=_FALSE_NOTE.format(n=false.n, users=false.users),
        ),
    ]
    varied = [s.name for s in sections]
    drawings = [dots(measured, q, varied) for q in measured.headline]
    drawings += [dots(false, PAST, varied, LABELS[PAST])]
    facts = [*facts_of(measured, varied), *_false_facts(false)]
    return Outcome(tables, drawings, facts, measured.n, measured.users, _notes(runs))


def source_of(section: AlignSection) -> str:
    """Return where an alignment's negatives come from, as `from_sources` takes it."""
    return f"hard-{section.miner}" if section.miner else section.negatives_from


def measure_negatives(runs: Sequence[Run]) -> Measured:
    """Measure the negatives of each alignment over the training rows of all runs; see `LABELS`.

    `PAST` is unknown for negatives that a model chooses, since it has learnt from what users take later in training.
    """
    values: dict[str, dict[str, list[float]]] = {}
    users: list[str] = []
    for run in runs:
        counts = item_counts(run.data)
        for section in run.recipe.align:
            rows = drawn_rows(run, section)
            own = values.setdefault(section.name, {})
            if section.negatives_from in UNJUDGED:
                unaware = unaware_rows(run, section, rows)
                own.setdefault(PAST, []).extend(false_negatives([e], run.data) for e in unaware)
            for e in rows:
                negatives = [counts.get(i, 0) for i in e.candidates if i != e.target]
                own.setdefault(POPULARITY, []).append(float(np.mean(negatives)))
        users += [e.user_id for e in rows]
    stacked = {n: {q: np.array([v]) for q, v in own.items()} for n, own in values.items()}
    return measure(stacked, users, baseline=variant_name("uniform"))


def drawn_rows(run: Run, section: AlignSection) -> list[RankingExample]:
    """Return the rows that an alignment was trained on, with the lists that its negatives come from."""
    if section.negatives_from == "list":
        return alignment_rows(run.data, section, run.recipe.seed)
    return frame_to_examples(read_parquet(run.folder / "align" / section.name / NEGATIVES_FILE))


def unaware_rows(run: Run, section: AlignSection, rows: Sequence[RankingExample]) -> list[RankingExample]:
    """Return the rows drawn again with knowledge of their own history alone: each stands for a separate user."""
    apart = [replace(e, user_id=str(i)) for i, e in enumerate(rows)]
    known = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    drawn = resample_negatives(apart, run.data, section.drawn_from or "uniform", seed=run.recipe.seed, excluded=known)
    return [replace(e, user_id=row.user_id) for e, row in zip(drawn, rows, strict=True)]


def _false_facts(false: Measured) -> list[str]:
    shares = (
        f"{v} {100 * intervals[PAST].mean:.1f}%" for v, intervals in false.intervals.items() if PAST in intervals
    )
    return [
        f"Negatives that the user takes later, drawn from the row’s history alone: {', '.join(shares)}.",
        *facts_of(false, None, LABELS, [PAST]),
    ]


def _notes(runs: Sequence[Run]) -> list[str]:
    size = runs[0].recipe.data.candidates.size
    return [
        f"Each row’s list is drawn again: {size - 1} negatives, of which a step sees N, chosen at random. Prompts "
        "that show the list show these. Lists under test are the same for all, and drawn uniformly.",
        "hard: the highest of a uniform pool under the model that alignment starts from, asked once before training, "
        "and not again as the policy changes.",
        "in-batch: targets of the next rows in one random order, as if they were a batch; training forms its own "
        "batches, by length.",
        "Training rows are of all places in users’ histories, of which SFT has seen each.",
    ]


def variant_name(source: str) -> str:
    """Return the name of the alignment with negatives from this source."""
    return f"s-dpo-{source}"


_FALSE_NOTE = (
    "Negatives of {n:,} training rows of {users:,} users. Taken later: the share that the user interacts with after "
    "the target, if the sampler knows only the row’s history. A dash: a model that knows all training interactions "
    "chooses them, or the list knows the training part. 95% intervals over users."
)

NEGATIVE_SAMPLING = Study(
    "negative-sampling",
    "Which negatives should S-DPO learn from, and how many of them does the user like after all?",
    "where the negatives come from: the row’s list, uniform, by popularity, targets of other rows, the SFT model’s "
    "probabilities, the highest of a pool under the SFT model and under SASRec; the SFT model, rows, N, β and steps "
    "are the same.",
    vary,
    analyse,
)
