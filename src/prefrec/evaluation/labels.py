"""Which metrics tables show, and their headings."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from prefrec.evaluation.intervals import Interval

HEADLINE_METRICS = ("hr@1", "ndcg@10")
"""Metrics of plots and comparisons, where measured."""
FULL_METRICS = ("ndcg@10", "hr@10")
"""Metrics of full ranking in tables."""
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


def as_table(frame: pl.DataFrame, form: str = "__str__") -> str:
    """Return all rows of a frame as text; `form` is the name of the frame's method that formats it."""
    options: Any = {"tbl_rows": -1, "tbl_cols": -1, "tbl_width_chars": 200}
    options |= {"fmt_str_lengths": 60, "float_precision": 3}
    with pl.Config(**options, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        return str(getattr(frame, form)())


def metric_text(interval: Interval | None) -> str:
    """Return `0.412 [0.370, 0.450]`; a dash for None."""
    if interval is None:
        return "–"
    ends = "no interval" if math.isnan(interval.low) else f"{interval.low:.3f}, {interval.high:.3f}"
    return f"{interval.mean:.3f} [{ends}]"
