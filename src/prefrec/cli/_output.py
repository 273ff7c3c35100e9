"""Tables that several verbs print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from prefrec.evaluation import Evaluation, comparison_table, evaluation_table, groups_table
from prefrec.evaluation.tables import FULL_METRICS, HEADLINE_METRICS

TABLE_METRICS = ("hr@1", "hr@5", "ndcg@10", "mrr")
"""Columns of the table of lists if nothing else is printed."""
WIDTH = 100
"""Columns of text if the output is not a terminal: the tables fit."""


def print_scores(metrics: dict[str, Any], shown: Sequence[str] | None = None) -> None:
    """Print the content of a `metrics.json`: table, groups of rows, comparisons, generation, the audit's verdict.

    Args:
        metrics: the content.
        shown: columns of the table; None: those that fit.
    """
    out = Console()
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    evaluation = Evaluation.from_json(metrics["evaluation"])
    full = Evaluation.from_json(metrics["full_catalogue"]) if metrics.get("full_catalogue") else None
    columns = dict.fromkeys(shown or (HEADLINE_METRICS if full else TABLE_METRICS))
    out.print(evaluation_table(evaluation, [m for m in columns if m in evaluation.measured], full))
    if groups := groups_table(evaluation, full):
        out.print(groups)
    if evaluation.comparisons:
        headline = [m for m in HEADLINE_METRICS if m in evaluation.measured]
        out.print(comparison_table(evaluation, headline, "lists" if full else ""))
    if full and full.comparisons:
        out.print(comparison_table(full, FULL_METRICS, "all items"))
    if metrics["generation"]:
        out.print(evaluation_table(Evaluation.from_json(metrics["generation"])))
