"""Metrics of tables and findings, and their headings."""

from __future__ import annotations

HEADLINE_METRICS = ("hr@1", "ndcg@10")
"""Metrics of findings, plots and comparisons, as far as they were measured."""
FULL_METRICS = ("ndcg@10", "hr@10")
"""Columns over the whole catalogue."""
_LABELS = {
    "item_auc": "AUC over users",
    "gen_hr@1": "HR@1 generated",
    "valid_ratio": "valid ratio",
    "substring_hr@1": "HR@1 by substring",
    "substring_valid_ratio": "valid by substring",
}


def metric_label(metric: str) -> str:
    """Return the heading of a metric: `hr@1` → HR@1, `gen_hr@1` → HR@1 generated."""
    return _LABELS.get(metric, metric.upper())
