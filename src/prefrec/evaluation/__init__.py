"""From scores and generated texts to metrics with intervals, and an audit of the lists themselves."""

from prefrec.evaluation.intervals import (
    Interval,
    PairedDifference,
    bootstrap_means,
    mean_interval,
    paired_difference,
)
from prefrec.evaluation.metrics import METRICS, expected_hits, metrics_for, target_ranks
from prefrec.evaluation.text import judge_texts, normalise_title, valid_choice

__all__ = [
    "METRICS",
    "Interval",
    "PairedDifference",
    "bootstrap_means",
    "expected_hits",
    "judge_texts",
    "mean_interval",
    "metrics_for",
    "normalise_title",
    "paired_difference",
    "target_ranks",
    "valid_choice",
]
