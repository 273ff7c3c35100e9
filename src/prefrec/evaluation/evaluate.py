"""Evaluation of rankers: metrics with intervals, and paired comparisons.

    rankers × examples → predictions (`predict`) → values per row → intervals over users (`evaluate_predictions`)

Metrics from scores are `hr@K`, `ndcg@K` and `mrr`. Rankers that generate text also have `gen_hr@1` (an invalid answer
is a miss) and `valid_ratio`, over the rows with text. The constrained choice (the candidate with the highest score)
has no row of its own, because its HR@1 is `hr@1`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation.audit import Audit
from prefrec.evaluation.intervals import (
    RESAMPLES,
    Interval,
    PairedDifference,
    bootstrap_means,
    difference_of,
    interval_of,
)
from prefrec.evaluation.metrics import expected_metrics, metrics_for, target_ranks
from prefrec.evaluation.outcome import Comparison, Evaluation, Group, Values
from prefrec.evaluation.predictions import prediction_frame
from prefrec.evaluation.text import judge_texts
from prefrec.rankers.base import GeneratingRanker, Ranker


def evaluate(
    rankers: Sequence[Ranker],
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    *,
    ks: Sequence[int] = (1, 5, 10),
    generate: bool = True,
    compare: str | Iterable[tuple[str, str]] | None = None,
    audit: Audit | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate rankers on examples.

    Args:
        ks: cut-offs of HR and NDCG.
        generate: also let rankers that can do so answer in text.
        compare: a ranker's name (all others against it), pairs (ranker, against), or None (each ranker against the
            one before it).
        audit: of the same lists, kept with the numbers.
        seed: of tie-breaking and bootstrap.
        progress: called with one line per step.
    """
    names = [r.name for r in rankers]
    if len(set(names)) < len(names):
        raise ConfigError(f"two rankers have the same name: {', '.join(names)}; rename one")
    _pairs(compare, names)
    if not names or not examples:
        raise DataError(f"nothing to evaluate: {len(names)} rankers, {len(examples)} examples")
    tell = progress or (lambda _: None)
    frames = [predict(r, examples, catalogue, generate=generate, seed=seed, progress=tell) for r in rankers]
    return evaluate_predictions(
        pl.concat(frames), ks=ks, compare=compare, audit=audit, seed=seed, resamples=resamples
    )


def predict(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    *,
    generate: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> pl.DataFrame:
    """Return one ranker's predictions (`PREDICTION_SCHEMA`).

    Args:
        generate: also let the ranker answer in text if it can.
        seed: of tie-breaking.
        progress: called with one line per step.

    Raises:
        ModelError: its answers do not fit the examples, or a score is NaN.
    """
    progress(f"{ranker.name}: scoring {len(examples)} rows")
    scores = np.asarray(ranker.score(examples), dtype=np.float64)
    target_index = np.array([e.target_index for e in examples], dtype=np.int64)
    width = max((len(e.candidates) for e in examples), default=0)
    if scores.shape != (len(examples), width):
        raise ModelError(
            f"ranker {ranker.name!r}: expected scores of shape {(len(examples), width)}, got {scores.shape}"
        )
    try:
        ranks = target_ranks(scores, target_index, seed)
    except ValueError as e:
        raise ModelError(f"ranker {ranker.name!r}: {e}") from None
    if not (generate and isinstance(ranker, GeneratingRanker)):
        return prediction_frame(ranker.name, examples, scores, ranks)
    progress(f"{ranker.name}: generating {len(examples)} answers")
    texts = ranker.generate(examples)
    if len(texts) != len(examples):
        raise ModelError(f"ranker {ranker.name!r}: {len(texts)} texts for {len(examples)} examples")
    outcome = judge_texts(texts, [catalogue.titles_of(e.candidates) for e in examples], target_index)
    return prediction_frame(ranker.name, examples, scores, ranks, texts, outcome.choice)


def evaluate_predictions(
    predictions: pl.DataFrame,
    *,
    ks: Sequence[int] = (1, 5, 10),
    compare: str | Iterable[tuple[str, str]] | None = None,
    audit: Audit | None = None,
    known_items: Collection[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Return the evaluation of a frame of predictions.

    Args:
        known_items: items with training interactions, to report rows with warm and with new targets separately;
            None: do not. The other arguments are those of `evaluate`.
    """
    groups = _by_ranker(predictions)
    with_text = predictions.filter(pl.col("generated").is_not_null())
    written = _by_ranker(with_text) if len(with_text) else {}
    pairs = _pairs(compare, list(groups))
    first = next(iter(groups.values()))
    ranked = {name: _rank_values(group, ks) for name, group in groups.items()}
    parts = [_Part(first, ranked, seed, resamples)]
    if written:
        rows = next(iter(written.values()))
        parts.append(_Part(rows, {name: _text_values(group) for name, group in written.items()}, seed, resamples))
    values = {name: {m: v for p in parts for m, v in p.values.get(name, {}).items()} for name in groups}
    metrics = {name: {m: i for p in parts for m, i in p.intervals(name).items()} for name in groups}
    comparisons = [Comparison(a, b, m, d) for a, b in pairs for p in parts for m, d in p.differences(a, b).items()]
    sizes = first["listed"].to_numpy().astype(np.int64)
    return Evaluation(
        metrics,
        comparisons,
        *parts[0].size,
        _mean(1.0 / sizes),
        seed,
        resamples,
        audit,
        expected=expected_metrics(sizes, ks),
        groups={} if known_items is None else _groups(first, ranked, ks, known_items, seed, resamples),
        values=values,
        predictions=predictions,
    )


def _groups(
    rows: pl.DataFrame, values: Values, ks: Sequence[int], known_items: Collection[str], seed: int, resamples: int
) -> dict[str, Group]:
    """Return the non-empty groups of rows with warm and with new targets; `rows` as for `_Part`."""
    warm = rows["target"].is_in(list(known_items)).to_numpy()
    groups = {}
    for name, chosen in (("warm", warm), ("new", ~warm)):
        if chosen.any():
            own = {r: {m: v[chosen] for m, v in metrics.items()} for r, metrics in values.items()}
            part = _Part(rows.filter(chosen), own, seed, resamples)
            expected = expected_metrics(rows["listed"].to_numpy()[chosen], ks)
            groups[name] = Group({r: part.intervals(r) for r in own}, *part.size, expected)
    return groups


class _Part:
    """The metrics over the same rows, with one set of resamples; `rows` are any ranker's predictions."""

    def __init__(self, rows: pl.DataFrame, values: Values, seed: int, resamples: int) -> None:
        self.values = values
        users = rows["user_id"].to_list()
        keys = [(name, metric) for name, metrics in values.items() for metric in metrics]
        draws = bootstrap_means(np.stack([values[r][m] for r, m in keys], axis=1), users, resamples, seed)
        self.column = {key: draws[:, i] for i, key in enumerate(keys)}
        self.size = (len(users), len(set(users)))

    def intervals(self, name: str) -> dict[str, Interval]:
        """Return metric → interval of a ranker."""
        metrics = self.values.get(name, {})
        return {m: interval_of(_mean(v), self.column[name, m], *self.size) for m, v in metrics.items()}

    def differences(self, name: str, against: str) -> dict[str, PairedDifference]:
        """Return metric → difference of two rankers, for the metrics of both."""
        ours, theirs, column = self.values.get(name, {}), self.values.get(against, {}), self.column
        return {
            m: difference_of(_mean(v - theirs[m]), column[name, m] - column[against, m], *self.size)
            for m, v in ours.items()
            if m in theirs
        }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _by_ranker(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return ranker → predictions by row. All rankers must have the same rows, with candidates in any order."""
    names = predictions["ranker"].unique(maintain_order=True).to_list()
    groups = {name: predictions.filter(pl.col("ranker") == name).sort("row") for name in names}
    if not groups:
        raise DataError("nothing to evaluate: the predictions have no rows")
    key = ["row", "user_id", "target"]
    first = next(iter(groups.values()))
    for name, group in groups.items():
        if not group.select(key).equals(first.select(key)):
            raise DataError(f"rankers {names[0]!r} and {name!r} answered different rows and cannot be paired")
        if not _same_lists(group, first):
            raise DataError(f"rankers {names[0]!r} and {name!r} answered different lists and cannot be paired")
    return groups


def _same_lists(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    """Return True if two rankers had the same candidates, as far as these were kept."""
    if not ours["listed"].equals(theirs["listed"]):
        return False
    if any((frame["candidates"].list.len() < frame["listed"]).any() for frame in (ours, theirs)):
        return True
    mine, others = ours["candidates"], theirs["candidates"]
    return mine.equals(others) or mine.list.sort().equals(others.list.sort())


def _rank_values(group: pl.DataFrame, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return metric → values [B] of one ranker's predictions."""
    ranks = group["rank"].to_numpy().astype(np.int64)
    return {name: metric(ranks) for name, metric in metrics_for(ks).items()}


def _text_values(group: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return metric → values [B] of predictions that all have a text."""
    hit = (group["choice"] == group["target"]).fill_null(False)
    valid = group["choice"].is_not_null()
    return {"gen_hr@1": hit.to_numpy().astype(np.float64), "valid_ratio": valid.to_numpy().astype(np.float64)}


def _pairs(compare: str | Iterable[tuple[str, str]] | None, names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs (ranker, against) of `compare`."""
    if compare is None:
        return [(b, a) for a, b in pairwise(names)]
    pairs = [(n, compare) for n in names if n != compare] if isinstance(compare, str) else list(compare)
    mentioned = {compare} if isinstance(compare, str) else {n for pair in pairs for n in pair}
    if unknown := sorted(mentioned - set(names)):
        raise ConfigError(f"cannot compare with {', '.join(unknown)}: the rankers are {', '.join(names)}")
    return pairs
