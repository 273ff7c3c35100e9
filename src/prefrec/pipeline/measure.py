"""The evaluation stage: query rankers on candidate sets and in full ranking, and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import polars as pl

from prefrec.data import PreparedData
from prefrec.evaluation import FULL_RANKING, Audit, Evaluation, NoAudit, evaluate_predictions, metrics_for
from prefrec.evaluation.beyond import beyond_accuracy
from prefrec.evaluation.by_user import UserSpread, user_spread
from prefrec.evaluation.evaluate import TEXT_METRICS
from prefrec.evaluation.outcome import Group
from prefrec.evaluation.predictions import judge_substrings, ranks_of
from prefrec.evaluation.targets import item_classes, repeated_targets
from prefrec.pipeline.audited import audit_under_test
from prefrec.pipeline.score import predict_all, predict_full
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.runs.results import Results
from prefrec.sections import EvaluateSection
from prefrec.stages.base import RankerStage
from prefrec.stages.blend import BlendStage

Block = TypeVar("Block", bound=Group)


def evaluate_rankers(
    data: PreparedData,
    section: EvaluateSection,
    stages: Sequence[RankerStage],
    cache: Path,
    *,
    seed: int,
    audit: Audit | None = None,
    logs: Mapping[str, str] | None = None,
    baselines: FittedBaselines | None = None,
    counted: str | None = None,
    starts: Mapping[str, str] = MappingProxyType({}),
) -> Results:
    """Query the baselines and every stage (`predict_all`), and compare them (`comparison_pairs`).

    Args:
        data: prepared data.
        section: what to measure.
        stages: those of the rankers that are not baselines.
        cache: folder for predictions, which are not made twice.
        seed: of the baselines.
        audit: of the candidate sets under test. Default: make it first.
        logs: ranker → the interactions that it was trained on. Default: not known.
        baselines: those of the data. Default: fit them.
        counted: baselines count what is known before the examples of this split. Default: the split under test.
        starts: language model → the one that it started from, as for `comparison_pairs`.
    """
    audit = audit or audit_under_test(data, section, seed)
    fitted = (baselines or FittedBaselines(data, seed)).before(counted or section.split, section.baselines)
    predictions = predict_all(data, section, fitted, stages, cache, seed=seed)
    # Generated texts are measured in a separate block, because only some examples have one.
    silent = predictions.with_columns(generated=pl.lit(None, pl.String), choice=pl.lit(None, pl.String))
    items = item_classes(data, section.split)
    repeated = repeated_targets(data, data.examples(section.split, section.rows))
    shared: dict[str, Any] = {"items": items, "repeated": repeated, "starts": starts}
    evaluation = _measure(silent, data, section, stages, ks=section.ks, audit=audit, **shared)
    logs = {name: log for name, log in (logs or {}).items() if name in evaluation.metrics}
    full: Evaluation | None = None
    beyond: dict[str, dict[str, float]] = {}
    by_user: dict[str, UserSpread] = {}
    if section.full_rows != 0:
        whole: dict[RankerStage, str] = {}
        for stage in stages if section.ablations else ():
            whole |= dict.fromkeys(stage.ablations, stage.name)
        answers = predict_full(data, section, fitted, [*stages, *whole], cache / "full_catalogue", seed=seed)
        less = {part.name: name for part, name in whole.items()}
        full = _measure(answers, data, section, stages, ks=[10], audit=FULL_RANKING, less=less, **shared)
        full = replace(full, logs=logs)
        shown = answers.filter(pl.col("ranker").is_in(full.rankers))
        beyond = beyond_accuracy(shown, data.train_interactions, data.catalogue)
        by_user = user_spread(shown)
    return Results(
        section.split,
        replace(evaluation, logs=logs),
        full,
        _generation(predictions, data, section, stages, audit, starts),
        beyond,
        by_user=by_user,
        predictions=predictions,
    )


TRAINING, BOTH = "training", "training and validation"
"""Interactions that a ranker was trained on."""


def logs_read(
    data: PreparedData,
    section: EvaluateSection,
    stages: Sequence[RankerStage],
    counted: str | None = None,
) -> dict[str, str]:
    """Return ranker → the interactions that it was trained on before the examples under test.

    Baselines count what is known then, or before the examples of the split `counted`. Other rankers have only read
    the training log, unless they were refit, so that they have a `first`. A model without training reads none, and is
    absent.
    """
    is_longer = section.split == "test" and not data.validation_interactions.is_empty()
    is_counted = is_longer and counted in (None, section.split)
    logs: dict[str, str] = dict.fromkeys([*section.baselines], BOTH if is_counted else TRAINING)
    for stage in stages:
        if stage.model is None or stage.weights is not None:
            counts = f"{TRAINING}, and its counts and baselines validation, too"
            alone = counts if is_longer and _asks_blend(stage) else TRAINING
            logs[stage.name] = BOTH if is_longer and stage.first else alone
    return logs


def _asks_blend(stage: RankerStage) -> bool:
    """Return True if a ranker is a blend, or queries one when it scores."""
    if isinstance(stage, BlendStage):
        return True
    return stage.queries and any(_asks_blend(needed) for needed in stage.before.values())


def comparison_pairs(
    lms: Sequence[str], models: Sequence[str], best: str | None, starts: Mapping[str, str] = MappingProxyType({})
) -> list[tuple[str, str]]:
    """Return the pairs to compare: each language model with others (below), each model with the best baseline.

    A language model is compared with the one before, and with the one that it started from if that is another.

    Args:
        lms: language models in the order of training.
        models: all rankers that are not baselines.
        best: the best baseline; None: there is none.
        starts: language model → the one that it started from. Default: the one before.
    """
    pairs: list[tuple[str, str]] = []
    for before, name in pairwise(lms):
        pairs.append((name, before))
        start = starts.get(name, before)
        if start != before and start in lms:
            pairs.append((name, start))
    return pairs + [(name, best) for name in models if best is not None]


def best_baseline(predictions: pl.DataFrame, baselines: Sequence[str]) -> str | None:
    """Return the first baseline with the highest mean NDCG@10; None if there are no baselines."""
    ndcg = metrics_for([10])["ndcg@10"]
    names = [n for n in predictions["ranker"].unique(maintain_order=True) if n in baselines]
    reached = {n: float(ndcg(*ranks_of(predictions.filter(pl.col("ranker") == n))).mean()) for n in names}
    return max(names, key=reached.__getitem__, default=None)


def _measure(
    predictions: pl.DataFrame,
    data: PreparedData,
    section: EvaluateSection,
    stages: Sequence[RankerStage],
    *,
    ks: Sequence[int],
    audit: Audit | NoAudit,
    items: pl.DataFrame,
    repeated: Sequence[bool] | None,
    starts: Mapping[str, str],
    less: Mapping[str, str] | None = None,
) -> Evaluation:
    """Return metrics and comparisons: those of `comparison_pairs`, and each blend with itself without one part.

    `less` has the name of each blend without a part → that of the whole blend.
    """
    less = less or {}
    names = predictions["ranker"].unique(maintain_order=True).to_list()
    best = best_baseline(predictions, section.baselines)
    lms = [stage.name for stage in stages if stage.model and stage.name in names]
    compared = [name for name in names if name not in section.baselines and name not in less]
    compare = comparison_pairs(lms, compared, best, starts)
    compare += [(whole, name) for name, whole in less.items() if name in names]
    known = set(data.known_interactions(section.split)["item_id"])
    evaluation = evaluate_predictions(
        predictions,
        ks=ks,
        compare=list(dict.fromkeys(compare)),
        audit=audit,
        known_items=known,
        items=items,
        repeated=repeated,
    )

    def shown(block: Block) -> Block:
        kept = block.metrics.keys() - less.keys()
        return replace(block, metrics={name: of for name, of in block.metrics.items() if name in kept})

    split: dict[str, Any] = {
        field: {name: shown(group) for name, group in getattr(evaluation, field).items()}
        for field in ("groups", "by_class", "by_count", "by_repeat")
    }
    return replace(shown(evaluation), best_reference=best, **split)


def _generation(
    predictions: pl.DataFrame,
    data: PreparedData,
    section: EvaluateSection,
    stages: Sequence[RankerStage],
    audit: Audit,
    starts: Mapping[str, str],
) -> Evaluation | None:
    """Return the metrics of generated text, by our judge and by the S-DPO authors'; None without generated text."""
    generated = predictions.filter(pl.col("generated").is_not_null())
    if generated.is_empty():
        return None
    generated = generated.with_columns(substring=judge_substrings(generated, data.catalogue))
    writers = set(generated["ranker"])
    models = [stage.name for stage in stages if stage.model]
    pairs = comparison_pairs([name for name in models if name in writers], [], None, starts)
    whole = evaluate_predictions(generated, ks=section.ks, compare=pairs, audit=audit)
    shown = [metric for pair in TEXT_METRICS.values() for metric in pair]
    kept = {r: {m: of[m] for m in shown} for r, of in whole.metrics.items()}
    comparisons = [c for c in whole.comparisons if c.metric in TEXT_METRICS["choice"]]
    return replace(whole, metrics=kept, comparisons=comparisons, expected={}, values={}, predictions=None)
