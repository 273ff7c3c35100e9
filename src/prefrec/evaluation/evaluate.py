"""Evaluation of rankers: metrics with intervals, and paired comparisons.

    rankers × examples → predictions (`predict`) → values per row → intervals over users (`evaluate_predictions`)

Metrics from scores are `hr@K`, `ndcg@K` and `mrr`. Rankers that generate text also have `gen_hr@1` (an invalid answer
is a miss) and `valid_ratio`, over the rows with text; with a column `substring` (`judge_substrings`) also
`substring_hr@1` and `substring_valid_ratio`, as the S-DPO authors count. The constrained choice (the candidate with
the highest score) has no row of its own, because its HR@1 is `hr@1`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, ModelError, did_you_mean
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats, expected_metrics, metrics_for, target_ranks
from prefrec.evaluation.outcome import Evaluation, Group, Values, compare_columns, corrected
from prefrec.evaluation.predictions import judge_texts, prediction_frame, ranks_of
from prefrec.evaluation.verdict import Audit, NoAudit
from prefrec.rankers.base import GeneratingRanker, Ranker

TEXT_METRICS = {"choice": ("gen_hr@1", "valid_ratio"), "substring": ("substring_hr@1", "substring_valid_ratio")}
"""Column of predictions with the items that texts name → metrics. `substring` is by `judge_substrings`."""
Columns = dict[tuple[str, str], Floats]
"""(Ranker, metric) → values [B]."""


def evaluate(
    rankers: Sequence[Ranker],
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    *,
    audit: Audit | NoAudit,
    ks: Sequence[int] = (1, 5, 10),
    generate: bool = True,
    compare: str | Sequence[tuple[str, str]] | None = None,
) -> Evaluation:
    """Evaluate rankers on examples.

    Args:
        audit: of the same lists, or why there is none; its verdict stays with the numbers.
        ks: cut-offs of HR and NDCG.
        generate: also let rankers that can do so answer in text.
        compare: a ranker's name (all others against it), pairs (ranker, against), or None (each ranker against the
            one before it).
    """
    names = [r.name for r in rankers]
    if len(set(names)) < len(names):
        raise ConfigError(f"two rankers have the same name: {', '.join(names)}; rename one")
    named_pairs(compare, names)
    if not names or not examples:
        raise DataError(f"nothing to evaluate: {len(names)} rankers, {len(examples)} examples")
    frames = [predict(r, examples, catalogue, generate=generate) for r in rankers]
    return evaluate_predictions(pl.concat(frames), ks=ks, compare=compare, audit=audit)


def predict(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    *,
    generate: bool = True,
) -> pl.DataFrame:
    """Return one ranker's predictions (`PREDICTION_SCHEMA`), with `generate` also its answers in text if it can.

    Raise ModelError if its answers do not fit the examples, or a score is NaN.
    """
    scores = np.asarray(ranker.score(examples), dtype=np.float64)
    target_index = np.array([e.target_index for e in examples], dtype=np.int64)
    width = max((len(e.candidates) for e in examples), default=0)
    if scores.shape != (len(examples), width):
        raise ModelError(
            f"ranker {ranker.name!r}: expected scores of shape {(len(examples), width)}, got {scores.shape}"
        )
    try:
        ranks = target_ranks(scores, target_index)
    except ValueError as e:
        raise ModelError(f"ranker {ranker.name!r}: {e}") from None
    if not (generate and isinstance(ranker, GeneratingRanker)):
        return prediction_frame(ranker.name, examples, scores, ranks)
    texts = ranker.generate(examples)
    if len(texts) != len(examples):
        raise ModelError(f"ranker {ranker.name!r}: {len(texts)} texts for {len(examples)} examples")
    choices = judge_texts(texts, examples, catalogue)
    return prediction_frame(ranker.name, examples, scores, ranks, texts, choices)


def evaluate_predictions(
    predictions: pl.DataFrame,
    *,
    audit: Audit | NoAudit,
    ks: Sequence[int] = (1, 5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
    known_items: Collection[str] | None = None,
) -> Evaluation:
    """Return the evaluation of a frame of predictions.

    Metrics of a ranker that answered only some rows are of these rows, and comparisons of those that both answered.
    Rows with warm and with new targets are reported separately if `known_items`, those with training interactions,
    are given; over the whole catalogue also the ranks among known, or among new items. The other arguments are those
    of `evaluate`.
    """
    answers = _by_ranker(predictions)
    pairs = named_pairs(compare, list(answers))
    rows = max(answers.values(), key=len)
    values = _values(answers, rows, ks)
    means, sizes = _means(values, rows), rows["listed"].to_numpy().astype(np.int64)
    by_ranker: Values = {name: {} for name in answers}
    for (name, metric), column in values.items():
        by_ranker[name][metric] = column[~np.isnan(column)]
    return Evaluation(
        means.table(),
        *means.size,
        expected_metrics(sizes, ks),
        corrected(compare_columns(means, pairs)),
        float((1.0 / sizes).mean()),
        audit,
        items=means.items,
        groups={} if known_items is None else _groups(answers, rows, ks, known_items),
        values=by_ranker,
        predictions=predictions,
    )


def _values(answers: Mapping[str, pl.DataFrame], rows: pl.DataFrame, ks: Sequence[int]) -> Columns:
    """Return all metrics of all rankers on these rows; NaN where a ranker has no answer, or none in text."""
    values: Columns = {}
    for name, own in answers.items():
        at = np.searchsorted(rows["row"], own["row"])
        ranks = ranks_of(own)
        columns = {metric: value(*ranks) for metric, value in metrics_for(ks).items()} | _text_values(own)
        for metric, column in columns.items():
            values[name, metric] = np.full(len(rows), np.nan)
            values[name, metric][at] = column
    return values


def _groups(
    answers: Mapping[str, pl.DataFrame], rows: pl.DataFrame, ks: Sequence[int], known_items: Collection[str]
) -> dict[str, Group]:
    """Return the non-empty groups of rows with warm and with new targets; if possible also among their own class."""
    # Classes are known where the whole catalogue was ranked.
    among = {"class_rank": "rank", "class_tied": "tied", "class_listed": "listed"}
    ways: list[tuple[str, str, dict[str, str]]] = [("warm", "new", {})]
    if all(own["class_rank"].null_count() == 0 for own in answers.values()):
        ways.append(("known among known", "new among new", among))
    groups = {}
    for warm, new, renamed in ways:
        asked = {n: own.drop(renamed.values()).rename(renamed) for n, own in answers.items()}
        for name, is_known in ((warm, True), (new, False)):
            kept = pl.col("target").is_in(list(known_items)) == is_known
            some = {n: part for n, own in asked.items() if len(part := own.filter(kept))}
            if some:
                widest = max(some.values(), key=len)
                values = {key: v for key, v in _values(some, widest, ks).items() if key[1] in metrics_for(ks)}
                means = _means(values, widest)
                expected = expected_metrics(widest["listed"].to_numpy(), ks)
                groups[name] = Group(means.table(), *means.size, expected, items=means.items)
    return groups


def _means(values: Columns, rows: pl.DataFrame) -> Means:
    """Return the means of values [B] over rows, which are any ranker's predictions."""
    return Means(values, rows["user_id"].to_list(), rows["target"].to_list())


def _by_ranker(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return ranker → predictions by row.

    Candidates may be in any order. Rankers may have answered fewer rows than the one with the most of them.
    """
    parts = predictions.partition_by("ranker", maintain_order=True)
    if not parts:
        raise DataError("nothing to evaluate: the predictions have no rows")
    groups = {part["ranker"][0]: part.sort("row") for part in parts}
    key = ["row", "user_id", "target"]
    first = max(groups, key=lambda name: len(groups[name]))
    for name, own in groups.items():
        others = groups[first].filter(pl.col("row").is_in(own["row"].implode()))
        same_rows = own.select(key).equals(others.select(key))
        if not (same_rows and _same_lists(own, others)):
            what = "lists" if same_rows else "rows"
            raise DataError(f"rankers {first!r} and {name!r} answered different {what} and cannot be paired")
    return groups


def _same_lists(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    if not ours["listed"].equals(theirs["listed"]):
        return False
    # Some files keep only the best candidates, which differ between rankers.
    if any((frame["candidates"].list.len() < frame["listed"]).any() for frame in (ours, theirs)):
        return True
    mine, others = ours["candidates"], theirs["candidates"]
    return mine.equals(others) or mine.list.sort().equals(others.list.sort())


def _text_values(answers: pl.DataFrame) -> dict[str, Floats]:
    """Return the metrics of a ranker's texts, NaN where there is none; {} if there is none at all."""
    silent = answers["generated"].is_null().to_numpy()
    values: dict[str, Floats] = {}
    for column, (hit_rate, valid_ratio) in TEXT_METRICS.items():
        if column in answers.columns and not silent.all():
            hit = (answers[column] == answers["target"]).fill_null(False)
            values[hit_rate] = np.where(silent, np.nan, hit.to_numpy())
            values[valid_ratio] = np.where(silent, np.nan, answers[column].is_not_null().to_numpy())
    return values


def named_pairs(compare: str | Sequence[tuple[str, str]] | None, names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs (ranker, against) that `compare` names (`evaluate`); raise ConfigError for unknown names."""
    if compare is None:
        return [(b, a) for a, b in pairwise(names)]
    pairs = [(n, compare) for n in names if n != compare] if isinstance(compare, str) else list(compare)
    mentioned = {compare} if isinstance(compare, str) else {n for pair in pairs for n in pair}
    if unknown := sorted(mentioned - set(names)):
        near = did_you_mean(unknown[0], names)
        raise ConfigError(f"cannot compare with {', '.join(unknown)}: the rankers are {', '.join(names)}{near}")
    return pairs
