"""What several verbs print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from prefrec.evaluation import Evaluation, comparison_table, evaluation_table
from prefrec.evaluation.preferences import Preferences, preference_tables

TABLE_METRICS = ("hr@1", "hr@5", "ndcg@10", "mrr")
COMPARED = ("hr@1", "ndcg@10")


def print_scores(metrics: dict[str, Any], shown: Sequence[str] = TABLE_METRICS) -> None:
    """Print the content of a `metrics.json`: table, comparisons, generation, the audit's verdict."""
    out = Console()
    evaluation = Evaluation.from_json(metrics["evaluation"])
    known = {m for of in evaluation.metrics.values() for m in of}
    out.print(evaluation_table(evaluation, [m for m in dict.fromkeys(shown) if m in known]))
    if evaluation.comparisons:
        out.print(comparison_table(evaluation, [m for m in COMPARED if m in known]))
    if metrics["generation"]:
        out.print(evaluation_table(Evaluation.from_json(metrics["generation"])))


def print_preferences(found: dict[str, Any]) -> None:
    """Print the content of a `preferences.json`."""
    Console().print(*preference_tables(Preferences.from_json(found)))
