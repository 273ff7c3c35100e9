"""Metrics with intervals from scores and generated texts, and an audit of candidate lists."""

from prefrec.evaluation.audit import Audit, AuditRow, audit_lists, audit_prepared
from prefrec.evaluation.evaluate import evaluate, evaluate_predictions, predict
from prefrec.evaluation.full_catalogue import full_ranks, whole_catalogue
from prefrec.evaluation.intervals import (
    Interval,
    PairedDifference,
    bootstrap_means,
    mean_interval,
    paired_difference,
)
from prefrec.evaluation.metrics import METRICS, expected_hits, metrics_for, target_ranks
from prefrec.evaluation.outcome import Comparison, Evaluation, Group
from prefrec.evaluation.predictions import read_predictions, write_predictions
from prefrec.evaluation.tables import audit_table, comparison_table, evaluation_table, groups_table
from prefrec.evaluation.text import judge_texts, normalise_title, valid_choice

__all__ = [
    "METRICS",
    "Audit",
    "AuditRow",
    "Comparison",
    "Evaluation",
    "Group",
    "Interval",
    "PairedDifference",
    "audit_lists",
    "audit_prepared",
    "audit_table",
    "bootstrap_means",
    "comparison_table",
    "evaluate",
    "evaluate_predictions",
    "evaluation_table",
    "expected_hits",
    "full_ranks",
    "groups_table",
    "judge_texts",
    "mean_interval",
    "metrics_for",
    "normalise_title",
    "paired_difference",
    "predict",
    "read_predictions",
    "target_ranks",
    "valid_choice",
    "whole_catalogue",
    "write_predictions",
]
