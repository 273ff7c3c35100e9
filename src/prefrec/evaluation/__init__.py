"""Metrics with intervals from scores and generated texts, and an audit of candidate sets."""

from prefrec.evaluation.audit import audit_lists, audit_prepared
from prefrec.evaluation.by_user import UserSpread, user_spread
from prefrec.evaluation.evaluate import evaluate, evaluate_full, evaluate_predictions, predict
from prefrec.evaluation.external import Scored, evaluate_scores
from prefrec.evaluation.full import rank_catalogue
from prefrec.evaluation.intervals import Interval, Means, PairedDifference, mean_interval, paired_difference
from prefrec.evaluation.metrics import metrics_for, target_ranks
from prefrec.evaluation.outcome import Comparison, Evaluation, Group
from prefrec.evaluation.predictions import judge_texts, read_predictions
from prefrec.evaluation.verdict import FULL_RANKING, Audit, AuditRow, NoAudit

__all__ = [
    "FULL_RANKING", "Audit", "AuditRow", "Comparison", "Evaluation", "Group", "Interval", "Means", "NoAudit",
    "PairedDifference", "Scored", "UserSpread", "audit_lists", "audit_prepared", "evaluate",
    "evaluate_full", "evaluate_predictions", "evaluate_scores", "judge_texts", "mean_interval", "metrics_for",
    "paired_difference", "predict", "rank_catalogue", "read_predictions", "target_ranks", "user_spread",
]  # fmt: skip
