"""Study: where the negatives of S-DPO come from, and how many of them are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import PreparedData, RankingExample, frame_to_examples
from prefrec.data.readers import read_parquet
from prefrec.evaluation.tables import metric_label
from prefrec.pipeline.negatives import NEGATIVES_FILE
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import AlignSection, Recipe
from prefrec.pipeline.train import training_rows
from prefrec.training.negatives import redraw_lists
from prefrec_lab.studies.alignments import settings_of, variant
from prefrec_lab.studies.fairness import item_counts
from prefrec_lab.studies.measure import Measured, measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import dots, named_points, slug
from prefrec_lab.studies.study import SASREC, Drawing, Outcome, Study, has_hopwise, varied_alignment, with_alignments
from prefrec_lab.studies.tables import facts_of, results_table

WAYS = ("list", "uniform", "popularity", "in-batch", "hard")
JUDGE = SASREC.model
"""Whose hard negatives are tried where hopwise is installed."""

PAST = "past"
HELD_OUT = "held out"
POPULARITY = "popularity"
LABELS = {
    HELD_OUT: "Taken in held-out rows",
    PAST: "Taken later, drawn from the past alone",
    POPULARITY: "Training interactions of a negative",
}


@dataclass(frozen=True)
class _Taken:
    """What users take: item by item in training, and in the held-out rows."""

    sequence: dict[str, list[str]]
    held_out: dict[str, set[str]]

    def before(self, example: RankingExample) -> list[str]:
        """Training interactions of the row's user before its target."""
        own = self.sequence.get(example.user_id, [])
        return own[: own.index(example.target)] if example.target in own else list(example.history)

    def later(self, example: RankingExample) -> set[str]:
        """What the row's user takes after its target, in training and in held-out rows."""
        own, held = self.sequence.get(example.user_id, []), self.held_out.get(example.user_id, set())
        return {*(own[own.index(example.target) + 1 :] if example.target in own else ()), *held}


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """S-DPO with negatives from each of `WAYS`, and from SASRec where hopwise is installed.

    On rows of all places in a user's history: after the latest there is hardly anything left to take in training.
    """
    one = varied_alignment(base)
    ways = [*WAYS, f"hard-{JUDGE}"] if has_hopwise() else WAYS
    entries = [variant(one, _name(how), negatives_from=how, latest_per_user=None) for how in ways]
    if f"hard-{JUDGE}" not in ways:
        return with_alignments(base, entries)
    sections = list(base.sequential)
    if JUDGE not in [s.model for s in sections]:
        sections.append(SASREC)
    wider = base.model_copy(update={"sequential": sections})
    return with_alignments(wider, entries)


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Metrics by where the negatives come from, and the share of them that the user takes after all."""
    predictions = of_rankers(runs)
    users = next(iter(predictions.values()))[0]["user_id"].to_list()
    measured = measure(ranking_values(predictions, runs[0].recipe.evaluate.ks), users, baseline=_name("list"))
    sections = runs[0].recipe.align
    settings = {
        name: {"negatives": section.negatives_from, "N": of["N"], "rows": of["rows"], "seconds": of["seconds"]}
        for (name, of), section in zip(settings_of(runs).items(), sections, strict=True)
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
    drawings += [dots(false, PAST, varied, LABELS[PAST]), _against_false(measured, false)]
    facts = [*facts_of(measured, varied), *_false_facts(false)]
    return Outcome(tables, drawings, facts, measured.n, measured.users, _notes(runs))


def measure_negatives(runs: Sequence[Run]) -> Measured:
    """What the negatives of each alignment are, over the training rows of all runs; see `LABELS`.

    Rows of users without held-out rows count as users of whom nothing is taken later than training. `PAST` is not
    known of hard negatives: the models that judge them have learnt from what users take later in training.
    """
    values: dict[str, dict[str, list[float]]] = {}
    users: list[str] = []
    for run in runs:
        taken, counts = taken_by(run.data), item_counts(run.data)
        for section in run.recipe.align:
            rows = drawn_rows(run, section)
            own = values.setdefault(section.name, {})
            held = [taken.held_out.get(e.user_id, set()) for e in rows]
            own.setdefault(HELD_OUT, []).extend(share_in(rows, held))
            popular = [np.mean([counts.get(i, 0) for i in e.candidates if i != e.target]) for e in rows]
            own.setdefault(POPULARITY, []).extend(map(float, popular))
            if section.negatives_from != "list" and not section.is_hard:
                unaware = unaware_rows(run, section, rows, taken)
                own.setdefault(PAST, []).extend(share_in(unaware, [taken.later(e) for e in unaware]))
        users += [e.user_id for e in rows]
    order = (HELD_OUT, PAST, POPULARITY)
    stacked = {n: {q: np.array([of[q]]) for q in order if q in of} for n, of in values.items()}
    return measure(stacked, users, baseline=_name("uniform"))


def drawn_rows(run: Run, section: AlignSection) -> list[RankingExample]:
    """The rows that an alignment was trained on, with the lists that its negatives come from."""
    path = run.folder / "align" / section.name / NEGATIVES_FILE
    if section.negatives_from == "list":
        return training_rows(run.data, section, run.recipe.seed)
    return frame_to_examples(read_parquet(path))


def unaware_rows(
    run: Run, section: AlignSection, rows: Sequence[RankingExample], taken: _Taken
) -> list[RankingExample]:
    """The same rows drawn once more, by one who knows nothing of the users after the row's target.

    Each row stands for a user of its own, of whom the past alone is known.
    """
    apart = [replace(e, user_id=str(i)) for i, e in enumerate(rows)]
    past = [(str(i), item) for i, e in enumerate(rows) for item in taken.before(e)]
    known = pl.DataFrame(past, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    found = redraw_lists(apart, run.data, section.drawn_from or "uniform", seed=run.recipe.seed, known=known)
    return [replace(e, user_id=row.user_id) for e, row in zip(found, rows, strict=True)]


def taken_by(data: PreparedData) -> _Taken:
    """What the users of prepared data take."""
    sequence: dict[str, list[str]] = {}
    for user, item in data.train_interactions.select("user_id", "item_id").iter_rows():
        sequence.setdefault(user, []).append(item)
    held: dict[str, set[str]] = {}
    for e in (*data.validation, *data.test):
        held.setdefault(e.user_id, set()).add(e.target)
    return _Taken(sequence, held)


def share_in(rows: Sequence[RankingExample], taken: Sequence[set[str]]) -> list[float]:
    """The share of each row's negatives that is among these items [B]."""
    return [
        sum(i in own for i in e.candidates if i != e.target) / (len(e.candidates) - 1)
        for e, own in zip(rows, taken, strict=True)
    ]


def _against_false(measured: Measured, false: Measured) -> Drawing:
    """Accuracy against the share of negatives that are none."""
    quantity = measured.headline[-1]
    points = {
        v: (100 * of[PAST].mean, measured.intervals[v][quantity]) for v, of in false.intervals.items() if PAST in of
    }
    title = metric_label(quantity)
    return named_points(
        f"{slug(quantity)}-false-negatives",
        title,
        points,
        x_label="percent of the negatives that are taken later, drawn from the past alone",
        hint="Bars: 95% intervals over the users under test.",
    )


def _false_facts(false: Measured) -> list[str]:
    told = (f"{v} {100 * of[PAST].mean:.1f}%" for v, of in false.intervals.items() if PAST in of)
    return [
        f"Negatives that the user takes later, drawn from the past alone: {', '.join(told)}.",
        *facts_of(false, None, LABELS, [PAST]),
    ]


def _notes(runs: Sequence[Run]) -> list[str]:
    size = runs[0].recipe.data.candidates.size
    found = [
        f"Each row’s list is drawn again: {size - 1} negatives, of which a step sees N, chosen at random; prompts "
        "that show the list show these. Lists under test are the same for all, and drawn uniformly.",
        "hard: the highest of a uniform pool under the model that alignment starts from, asked once before training; "
        "it is not asked again as the policy changes.",
        "in-batch: targets of the rows that follow in one random order, as rows of a batch lend them to each other; "
        "training forms its own batches, by length.",
        "Training rows are of all places in users’ histories, in other studies of each user’s latest: after those, "
        "nearly nothing is left for the user to take in training. SFT may have seen a few of them.",
    ]
    if not any(s.negatives_judge for s in runs[0].recipe.align):
        found.append(f"Hard negatives of {JUDGE} are left out: hopwise is not installed.")
    return found


def _name(how: str) -> str:
    return f"s-dpo-{how}"


_FALSE_NOTE = (
    "Shares of the negatives drawn for {n:,} training rows of {users:,} users. Taken in held-out rows: the user "
    "takes the item in a validation or test row; the row’s own list (s-dpo-list) avoids these by knowing the whole "
    "log, the others know the training interactions alone. Taken later, drawn from the past alone: the same draw by "
    "one who knows only what came before the row’s target; the user takes the item later, in training or held-out "
    "rows. It is not known of hard negatives (dashes): the models that judge them have learnt from all training "
    "interactions, later ones among them. In brackets 95% intervals by bootstrap over users."
)

NEGATIVE_SAMPLING = Study(
    "negative-sampling",
    "Which negatives should S-DPO learn from, and how many of them does the user like after all?",
    "where the negatives come from: the row’s list, uniform, by popularity, targets of other rows, the highest of a "
    "pool under the SFT model and under SASRec; the SFT adapter, rows, N, β and steps are the same.",
    vary,
    analyse,
    overrides=("align.0.rows=256", "evaluate.rows=200"),
)
