"""Rankers and examples in, metrics with intervals and paired comparisons out.

    rankers × examples → predictions (`predict`) → values a row → intervals over users (`evaluate_predictions`)

Metrics from scores: `hr@K`, `ndcg@K`, `mrr`. Rankers that generate text have two more: `gen_hr@1` (an invalid
answer is a miss) and `valid_ratio`, both over the rows that were asked for text. The constrained choice (the
candidate with the highest score, valid by construction) has HR@1 = `hr@1` by definition, so it has no row of its own.
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
    """Put every example to every ranker and count.

    Args:
        ks: cut-offs of HR and NDCG.
        generate: also ask rankers that can to answer in text.
        compare: a ranker's name (all others against it), pairs (ranker, against), or None: each ranker
            against the one before it.
        audit: of the same lists, to be kept with the numbers.
        seed: of tie-breaking and bootstrap.
        progress: told what is being done, one line a step.
    """
    names = [r.name for r in rankers]
    if len(set(names)) < len(names):
        raise ConfigError(f"rankers need names of their own, got {', '.join(names)}")
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
        generate: also ask rankers that can to answer in text.
        seed: of tie-breaking.
        progress: told what is being done, one line a step.

    Raises:
        ModelError: its answers do not fit the examples, or a score is NaN; the ranker is named.
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
        known_items: items with training interactions, by which the rows are also split into those with warm and with
            new targets; None: they are not. The other arguments are those of `evaluate`.
    """
    groups = _by_ranker(predictions)
    asked = predictions.filter(pl.col("generated").is_not_null())
    written = _by_ranker(asked) if len(asked) else {}
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
    """Return the rows with warm and those with new targets, as far as there are some; `rows` as for `_Part`."""
    warm = rows["target"].is_in(list(known_items)).to_numpy()
    found = {}
    for name, chosen in (("warm", warm), ("new", ~warm)):
        if chosen.any():
            own = {r: {m: v[chosen] for m, v in of.items()} for r, of in values.items()}
            part = _Part(rows.filter(chosen), own, seed, resamples)
            expected = expected_metrics(rows["listed"].to_numpy()[chosen], ks)
            found[name] = Group({r: part.intervals(r) for r in own}, *part.size, expected)
    return found


class _Part:
    """Metrics over the same rows, `rows` being any ranker's predictions of them, with one set of resamples."""

    def __init__(self, rows: pl.DataFrame, values: Values, seed: int, resamples: int) -> None:
        self.values = values
        users = rows["user_id"].to_list()
        keys = [(name, metric) for name, of in values.items() for metric in of]
        draws = bootstrap_means(np.stack([values[r][m] for r, m in keys], axis=1), users, resamples, seed)
        self.column = {key: draws[:, i] for i, key in enumerate(keys)}
        self.size = (len(users), len(set(users)))

    def intervals(self, name: str) -> dict[str, Interval]:
        """Metric → interval of a ranker."""
        of = self.values.get(name, {})
        return {m: interval_of(_mean(v), self.column[name, m], *self.size) for m, v in of.items()}

    def differences(self, name: str, against: str) -> dict[str, PairedDifference]:
        """Metric → difference of two rankers, where both have it."""
        ours, theirs, column = self.values.get(name, {}), self.values.get(against, {}), self.column
        return {
            m: difference_of(_mean(v - theirs[m]), column[name, m] - column[against, m], *self.size)
            for m, v in ours.items()
            if m in theirs
        }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _by_ranker(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Ranker → its predictions by row; all rankers must have answered the same questions.

    The order of the candidates does not matter.
    """
    names = predictions["ranker"].unique(maintain_order=True).to_list()
    groups = {name: predictions.filter(pl.col("ranker") == name).sort("row") for name in names}
    if not groups:
        raise DataError("nothing to evaluate: the predictions hold no row")
    key = ["row", "user_id", "target"]
    first = next(iter(groups.values()))
    for name, group in groups.items():
        if not group.select(key).equals(first.select(key)):
            raise DataError(f"rankers {names[0]!r} and {name!r} answered different rows: nothing to pair")
        if not _same_lists(group, first):
            raise DataError(f"rankers {names[0]!r} and {name!r} answered different lists: nothing to pair")
    return groups


def _same_lists(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    """Return whether two rankers had the same candidates; of lists of which the best alone were kept: as many."""
    if not ours["listed"].equals(theirs["listed"]):
        return False
    if any((frame["candidates"].list.len() < frame["listed"]).any() for frame in (ours, theirs)):
        return True
    mine, others = ours["candidates"], theirs["candidates"]
    return mine.equals(others) or mine.list.sort().equals(others.list.sort())


def _rank_values(group: pl.DataFrame, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Metric → values [B] of one ranker's predictions."""
    ranks = group["rank"].to_numpy().astype(np.int64)
    return {name: metric(ranks) for name, metric in metrics_for(ks).items()}


def _text_values(group: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Metric → values [B] of predictions that all have a text."""
    hit = (group["choice"] == group["target"]).fill_null(False)
    valid = group["choice"].is_not_null()
    return {"gen_hr@1": hit.to_numpy().astype(np.float64), "valid_ratio": valid.to_numpy().astype(np.float64)}


def _pairs(compare: str | Iterable[tuple[str, str]] | None, names: list[str]) -> list[tuple[str, str]]:
    """Pairs (ranker, against) that `compare` asks for."""
    if compare is None:
        return [(b, a) for a, b in pairwise(names)]
    pairs = [(n, compare) for n in names if n != compare] if isinstance(compare, str) else list(compare)
    asked = {compare} if isinstance(compare, str) else {n for pair in pairs for n in pair}
    if unknown := sorted(asked - set(names)):
        raise ConfigError(f"cannot compare with {', '.join(unknown)}: the rankers are {', '.join(names)}")
    return pairs
