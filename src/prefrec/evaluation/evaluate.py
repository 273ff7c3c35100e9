"""Evaluation of rankers: metrics with intervals, and paired comparisons.

    rankers × examples → predictions (`predict`) → values per row → intervals over users (`evaluate_predictions`)

Metrics from scores are `hr@K`, `ndcg@K` and `mrr`. Rankers that generate text also have `gen_hr@1` (an invalid answer
is a miss) and `valid_ratio`, over the rows with text; with a column `substring` (`judge_substrings`) also
`substring_hr@1` and `substring_valid_ratio`, as the S-DPO authors count. The constrained choice (the candidate with
the highest score) has no row of its own, because its HR@1 is `hr@1`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation.audit import Audit
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats, expected_metrics, metrics_for, target_ranks
from prefrec.evaluation.outcome import Evaluation, Group, Values, compare_columns, corrected
from prefrec.evaluation.predictions import judge_texts, prediction_frame, ranks_of
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
    ks: Sequence[int] = (1, 5, 10),
    generate: bool = True,
    compare: str | Sequence[tuple[str, str]] | None = None,
    audit: Audit | None = None,
) -> Evaluation:
    """Evaluate rankers on examples.

    Args:
        ks: cut-offs of HR and NDCG.
        generate: also let rankers that can do so answer in text.
        compare: a ranker's name (all others against it), pairs (ranker, against), or None (each ranker against the
            one before it).
        audit: of the same lists, kept with the numbers.
    """
    names = [r.name for r in rankers]
    if len(set(names)) < len(names):
        raise ConfigError(f"two rankers have the same name: {', '.join(names)}; rename one")
    _pairs(compare, names)
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
    ks: Sequence[int] = (1, 5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
    audit: Audit | None = None,
    known_items: Collection[str] | None = None,
) -> Evaluation:
    """Return the evaluation of a frame of predictions.

    Rows with warm and with new targets are reported separately if `known_items`, those with training interactions,
    are given. The other arguments are those of `evaluate`.
    """
    groups = _by_ranker(predictions)
    pairs = _pairs(compare, list(groups))
    first = next(iter(groups.values()))
    sizes = first["listed"].to_numpy().astype(np.int64)
    ranks = {name: ranks_of(group) for name, group in groups.items()}
    ranked = {(name, m): metric(*r) for name, r in ranks.items() for m, metric in metrics_for(ks).items()}
    parts = [_means(ranked, first)]
    # Rankers may answer only some rows in text.
    with_text = predictions.filter(pl.col("generated").is_not_null())
    if len(with_text):
        written = _by_ranker(with_text)
        parts.append(_means(_text_values(written), next(iter(written.values()))))
    metrics = {name: {m: i for p in parts for m, i in p.table().get(name, {}).items()} for name in groups}
    values: Values = {name: {m: v for p in parts for (r, m), v in p.values.items() if r == name} for name in groups}
    return Evaluation(
        metrics,
        *parts[0].size,
        expected_metrics(sizes, ks),
        corrected([c for pair in pairs for part in parts for c in compare_columns(part, [pair])]),
        float((1.0 / sizes).mean()),
        audit,
        items=parts[0].items,
        groups={} if known_items is None else _groups(first, ranked, ks, known_items),
        values=values,
        predictions=predictions,
    )


def whole_catalogue(
    examples: Sequence[RankingExample], catalogue: Catalogue, seen: Sequence[Collection[str]] | None = None
) -> list[RankingExample]:
    """Return the examples with all unseen items as candidates, in the catalogue's order.

    `seen` are the items that each row's user took before its target [B], from `prefrec.data.seen_items`; None: the
    row's history only. The target always stays a candidate.
    """
    rows = []
    for e, taken in zip(examples, [()] * len(examples) if seen is None else seen, strict=True):
        left_out = {*e.history, *taken} - {e.target}
        rows.append(replace(e, candidates=tuple(i for i in catalogue.ids if i not in left_out)))
    return rows


def _groups(rows: pl.DataFrame, ranked: Columns, ks: Sequence[int], known_items: Collection[str]) -> dict[str, Group]:
    """Return the non-empty groups of rows with warm and with new targets; `rows` are any ranker's predictions."""
    warm = rows["target"].is_in(list(known_items)).to_numpy()
    groups = {}
    for name, chosen in (("warm", warm), ("new", ~warm)):
        if chosen.any():
            part = rows.filter(chosen)
            values = {key: v[chosen] for key, v in ranked.items()}
            means, expected = _means(values, part), expected_metrics(part["listed"].to_numpy(), ks)
            groups[name] = Group(means.table(), *means.size, expected, items=means.items)
    return groups


def _means(values: Columns, rows: pl.DataFrame) -> Means:
    """Return the means of values [B] over rows, which are any ranker's predictions."""
    return Means(values, rows["user_id"].to_list(), rows["target"].to_list())


def _by_ranker(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return ranker → predictions by row. All rankers must have the same rows, with candidates in any order."""
    parts = predictions.partition_by("ranker", maintain_order=True)
    if not parts:
        raise DataError("nothing to evaluate: the predictions have no rows")
    groups = {part["ranker"][0]: part.sort("row") for part in parts}
    key = ["row", "user_id", "target"]
    first, *others = groups
    for name in others:
        same_rows = groups[name].select(key).equals(groups[first].select(key))
        if not (same_rows and _same_lists(groups[name], groups[first])):
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


def _text_values(groups: Mapping[str, pl.DataFrame]) -> Columns:
    """Return the values of predictions that all have a text."""
    values: Columns = {}
    for name, group in groups.items():
        for column, (hit_rate, valid_ratio) in TEXT_METRICS.items():
            if column in group.columns:
                hit = (group[column] == group["target"]).fill_null(False)
                values[name, hit_rate] = hit.to_numpy().astype(np.float64)
                values[name, valid_ratio] = group[column].is_not_null().to_numpy().astype(np.float64)
    return values


def _pairs(compare: str | Sequence[tuple[str, str]] | None, names: list[str]) -> list[tuple[str, str]]:
    if compare is None:
        return [(b, a) for a, b in pairwise(names)]
    pairs = [(n, compare) for n in names if n != compare] if isinstance(compare, str) else list(compare)
    mentioned = {compare} if isinstance(compare, str) else {n for pair in pairs for n in pair}
    if unknown := sorted(mentioned - set(names)):
        raise ConfigError(f"cannot compare with {', '.join(unknown)}: the rankers are {', '.join(names)}")
    return pairs
