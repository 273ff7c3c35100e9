"""Tables that several verbs print."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from prefrec.evaluation import Evaluation
from prefrec.evaluation.labels import FULL_METRICS, HEADLINE_METRICS
from prefrec.evaluation.outcome import FAMILY
from prefrec.report.headline import decisive, outcome, users_served
from prefrec.report.tables import (
    VERDICT_STYLES,
    Grid,
    Printed,
    beyond_grid,
    comparisons_note,
    differences_grid,
    groups_grid,
    logs_notes,
    metrics_grid,
    metrics_note,
    outcome_grid,
    outcome_note,
    shown_baselines,
    targets_grids,
)
from prefrec.runs.results import Results

TABLE_METRICS = ("hr@1", "hr@5", "ndcg@10", "mrr")
"""Columns of the table if there is no full ranking."""


GROUPS_NOTE = "seen: the target has training interactions; new: it has none; among: ranked among such items only"

TARGETS_NOTE = "Class and number of interactions of the target's item before the examples under test"

BEYOND_NOTE = (
    "of the ten best items in full ranking. coverage: share of the catalogue in at least one top ten; novelty: −log2 "
    "of the share of users who interacted with an item; diversity: 1 − cosine of two titles of a top ten"
)


def print_outcome(results: Results) -> None:
    """Print the audit, the verdict and a short table of an evaluation, if there was one. The report has the rest."""
    block, evaluation = decisive(results), results.evaluation
    if block is None or evaluation is None:
        return
    out = Console()
    out.print(Text(evaluation.audit.verdict, VERDICT_STYLES[evaluation.audit.state]))
    out.print(escape(outcome(results)))
    wanted = FULL_METRICS if block is results.full_catalogue else HEADLINE_METRICS
    metrics = sorted(wanted, key=lambda metric: metric != FAMILY)
    grid, hidden = outcome_grid(block, metrics, shown_baselines(evaluation, results.full_catalogue))
    note = [outcome_note(block, next((m for m in metrics if m in block.measured), block.measured[0]))]
    note += logs_notes(block.logs)
    note += [f"{hidden} more baselines were measured; the report has them"] if hidden else []
    out.print(Printed(grid, "ranker", "\n".join(note)))


def print_results(results: Results) -> None:
    """Print metrics, groups of examples, comparisons and generated text of an evaluation, if there was one.

    The audit's verdict is above the first table, and its headline above each other one.
    """
    out = Console()
    evaluation, full = results.evaluation, results.full_catalogue
    if evaluation is None:
        return

    def show(block: Evaluation, grid: Grid, first: str, note: str, above: str = "") -> None:
        style = VERDICT_STYLES[block.audit.state]
        out.print(Printed(grid, first, note, above or block.audit.headline, style))

    columns = HEADLINE_METRICS if full else TABLE_METRICS
    grid = metrics_grid(evaluation, full, [m for m in columns if m in evaluation.measured])
    show(evaluation, grid, "ranker", metrics_note(evaluation, full), evaluation.audit.verdict)
    if groups := groups_grid(evaluation, full, ["ndcg@10"]):
        show(evaluation, groups, "ranker", GROUPS_NOTE)
    for title, by_target in targets_grids(evaluation, full, ["ndcg@10"]):
        show(evaluation, by_target, "ranker", f"{title}. {TARGETS_NOTE}")
    if results.beyond_accuracy:
        out.print(Printed(beyond_grid(results.beyond_accuracy), "ranker", BEYOND_NOTE))
    if sentence := users_served(results):
        out.print(escape(sentence))
    for block, metrics_shown in ((evaluation, HEADLINE_METRICS), (full, FULL_METRICS)):
        if block and block.comparisons:
            measured = [metric for metric in metrics_shown if metric in block.measured]
            compared = differences_grid(block.comparisons, measured)
            show(block, compared, "ranker − against", comparisons_note(block))
    if generation := results.generation:
        show(generation, metrics_grid(generation), "ranker", metrics_note(generation))
