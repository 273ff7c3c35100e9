"""Evaluate rankers: metrics with intervals, and paired comparisons.

    rankers × examples → predictions (`predict`) → values per example → intervals (`evaluate_predictions`)

Metrics of scores are `hr@K`, `ndcg@K` and `mrr`. Rankers that generate text also have `gen_hr@1` (an invalid answer
is a miss) and `valid_ratio`, over the examples with text. With a column `substring` (`judge_substrings`) they also
have `substring_hr@1` and `substring_valid_ratio`, as the S-DPO authors count. The HR@1 of the constrained choice, the
candidate with the highest score, is `hr@1`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample, seen_items
from prefrec.errors import NO_EXAMPLES, ConfigError, DataError, ModelError, did_you_mean
from prefrec.evaluation.full import rank_catalogue
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats, expected_metrics, metrics_for, target_ranks
from prefrec.evaluation.outcome import Evaluation, Group, Values, compare_columns, corrected
from prefrec.evaluation.predictions import checked_scores, judge_texts, prediction_frame, ranks_of
from prefrec.evaluation.targets import CLASSES, COUNTS, REPEATS, item_classes, repeated_targets
from prefrec.evaluation.verdict import FULL_RANKING, Audit, NoAudit
from prefrec.rankers.base import GeneratingRanker, ListRanker, Ranker

TEXT_METRICS = {"choice": ("gen_hr@1", "valid_ratio"), "substring": ("substring_hr@1", "substring_valid_ratio")}
"""Column of predictions with the items that texts name → metrics. `judge_substrings` makes `substring`."""
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
        rankers: objects with `name` and `score` (`Ranker`).
        examples: examples with candidate sets and targets.
        catalogue: all items.
        audit: of the same candidate sets, or why there is none. Its verdict stays with the numbers.
        ks: cut-offs of HR and NDCG.
        generate: also let rankers that can generate text answer in text.
        compare: a ranker's name (compare all others with it), or pairs (ranker, against). Default: compare each
            ranker with the one before it.

    Raises:
        ConfigError: two rankers share a name, `compare` names an unknown one, or a cut-off is not a whole number
            from 1.
        DataError: there are no rankers or no examples.
        ModelError: as `predict`.
    """
    names = _names(rankers)
    named_pairs(compare, names)
    metrics_for(ks)
    if not names or not examples:
        raise DataError(
            f"nothing to evaluate: {len(names)} rankers, {len(examples)} examples; give at least one of each"
        )
    frames = [predict(r, examples, catalogue, generate=generate) for r in rankers]
    return evaluate_predictions(pl.concat(frames), ks=ks, compare=compare, audit=audit)


def evaluate_full(
    rankers: Sequence[Ranker],
    data: PreparedData,
    *,
    split: str = "test",
    rows: int | None = None,
    ks: Sequence[int] = (10,),
    compare: str | Sequence[tuple[str, str]] | None = None,
) -> Evaluation:
    """Evaluate rankers in full ranking, as a run does: among all items that the user has not seen before.

    With `repeats: keep` the candidates are all items. The result also has the targets with and without known
    interactions apart (`groups`, `by_class`, `by_count`), and repeat targets (`by_repeat`).

    Args:
        rankers: objects with `name` and `score` (`Ranker`), which get examples with all items of the catalogue as
            candidates; a `ListRanker` gets only the unseen ones. For `test` they may have learnt from
            `data.known_interactions("test")`, as the rankers of a run have.
        data: prepared data, such as `read_prepared("runs/shop/data")`.
        split: `validation` or `test`.
        rows: number of examples, spread over users. Default: all.
        ks: cut-offs of HR and NDCG.
        compare: as in `evaluate`.

    Raises:
        ConfigError: two rankers share a name, `compare` names an unknown one, or a setting has another value than
            those above.
        DataError: there are no rankers, or no examples of the split.
        ModelError: as `predict`.
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"split: expected validation or test, got {split!r}; rankers have learnt from the others")
    if rows is not None and (not isinstance(rows, Integral) or isinstance(rows, bool) or rows < 1):
        raise ConfigError(f"rows: expected a whole number of at least 1, or None for all examples, got {rows!r}")
    names, examples = _names(rankers), data.examples(split, rows)
    named_pairs(compare, names)
    metrics_for(ks)
    if not names or not examples:
        raise DataError(f"nothing to evaluate: {len(names)} rankers, {len(examples)} {split} examples; {NO_EXAMPLES}")
    seen = seen_items(data, examples)
    known = set(data.known_interactions(split)["item_id"])
    frames = [
        rank_catalogue(r, examples, data.catalogue, seen, known, shared=not isinstance(r, ListRanker))
        for r in rankers
    ]
    return evaluate_predictions(
        pl.concat(frames),
        audit=FULL_RANKING,
        ks=ks,
        compare=compare,
        known_items=known,
        items=item_classes(data, split),
        repeated=repeated_targets(data, examples),
    )


def _names(rankers: Sequence[Ranker]) -> list[str]:
    """Return the names of rankers; raise ConfigError if two are the same."""
    names = [ranker.name for ranker in rankers]
    if len(set(names)) < len(names):
        raise ConfigError(f"two rankers have the same name: {', '.join(names)}; rename one")
    return names


def predict(
    ranker: Ranker, examples: Sequence[RankingExample], catalogue: Catalogue, *, generate: bool = True
) -> pl.DataFrame:
    """Return one ranker's predictions (`PREDICTION_SCHEMA`), with `generate` also its texts if it can generate.

    Raise ModelError if the scores or texts do not fit the examples, or a score is NaN, +inf or not a number.
    """
    scores = checked_scores(ranker, examples).astype(np.float64)
    target_index = np.array([e.target_index for e in examples], dtype=np.int64)
    try:
        ranks = target_ranks(scores, target_index)
    except ValueError as e:
        raise ModelError(f"ranker {ranker.name!r}: {e}") from None
    if not (generate and isinstance(ranker, GeneratingRanker)):
        return prediction_frame(ranker.name, examples, scores, ranks)
    texts = ranker.generate(examples)
    if len(texts) != len(examples):
        raise ModelError(f"ranker {ranker.name!r}: {len(texts)} texts for {len(examples)} examples")
    return prediction_frame(ranker.name, examples, scores, ranks, texts, judge_texts(texts, examples, catalogue))


def evaluate_predictions(
    predictions: pl.DataFrame,
    *,
    audit: Audit | NoAudit,
    ks: Sequence[int] = (1, 5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
    known_items: Collection[str] | None = None,
    items: pl.DataFrame | None = None,
    repeated: Sequence[bool] | None = None,
) -> Evaluation:
    """Return the evaluation of a frame of predictions.

    A ranker may have scored only some of the examples of the one that scored most. It is measured on these, and a
    comparison uses the examples that both scored.

    Args:
        predictions: frame of `PREDICTION_SCHEMA`.
        audit, ks, compare: as in `evaluate`.
        known_items: items with training interactions. If given, examples with warm and with new targets are also
            reported separately, and in full ranking also their ranks among known, or among new items.
        items: frame of `prefrec.evaluation.targets.item_classes`. If given, examples are also reported by class and
            by count of their target.
        repeated: whether the user had the target before, by number of the example (`row`). If given, examples are
            also reported by it.

    Raises:
        ConfigError: `compare` names an unknown ranker.
        DataError: there are no predictions, or rankers scored different examples or candidate sets.
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
        by_class={} if items is None else _by_target(answers, items, "class", CLASSES, ks),
        by_count={} if items is None else _by_target(answers, items, "count", [*COUNTS], ks),
        by_repeat={} if repeated is None else _by_repeat(answers, repeated, ks),
        values=by_ranker,
        predictions=predictions,
    )


def _values(answers: Mapping[str, pl.DataFrame], rows: pl.DataFrame, ks: Sequence[int]) -> Columns:
    """Return all metrics of all rankers on these rows; NaN where a ranker has no prediction, or no text."""
    values: Columns = {}
    for name, part in answers.items():
        at = np.searchsorted(rows["row"], part["row"])
        ranks = ranks_of(part)
        columns = {metric: value(*ranks) for metric, value in metrics_for(ks).items()} | text_values(part)
        for metric, column in columns.items():
            values[name, metric] = np.full(len(rows), np.nan)
            values[name, metric][at] = column
    return values


def _groups(
    answers: Mapping[str, pl.DataFrame], rows: pl.DataFrame, ks: Sequence[int], known_items: Collection[str]
) -> dict[str, Group]:
    """Return results on examples with warm and with new targets; in full ranking also ranked within their class."""
    # Only full ranking records classes.
    among = {"class_rank": "rank", "class_tied": "tied", "class_listed": "listed"}
    ways: list[tuple[str, str, dict[str, str]]] = [("warm", "new", {})]
    if all(part["class_rank"].null_count() == 0 for part in answers.values()):
        ways.append(("known among known", "new among new", among))
    groups = {}
    for warm, new, renamed in ways:
        ranked = {n: part.drop(renamed.values()).rename(renamed) for n, part in answers.items()}
        for name, is_known in ((warm, True), (new, False)):
            kept = pl.col("target").is_in(list(known_items)) == is_known
            if group := _group(ranked, kept, ks):
                groups[name] = group
    return groups


def _by_target(
    answers: Mapping[str, pl.DataFrame], items: pl.DataFrame, column: str, names: Sequence[str], ks: Sequence[int]
) -> dict[str, Group]:
    """Return the results on examples whose target has each of these values in a column of `items`."""
    groups = {}
    for name in names:
        of_group = items.filter(pl.col(column) == name)["item_id"].to_list()
        if group := _group(answers, pl.col("target").is_in(of_group), ks):
            groups[name] = group
    return groups


def _by_repeat(answers: Mapping[str, pl.DataFrame], repeated: Sequence[bool], ks: Sequence[int]) -> dict[str, Group]:
    """Return the results on targets that the user had before, and on the others."""
    groups = {}
    for name, wanted in zip(REPEATS, (True, False), strict=True):
        rows = [row for row, is_repeat in enumerate(repeated) if is_repeat == wanted]
        if group := _group(answers, pl.col("row").is_in(rows), ks):
            groups[name] = group
    return groups


def _group(answers: Mapping[str, pl.DataFrame], kept: pl.Expr, ks: Sequence[int]) -> Group | None:
    """Return the results on some of the examples; None if there are none."""
    filtered = {name: frame.filter(kept) for name, frame in answers.items()}
    of_group = {name: frame for name, frame in filtered.items() if len(frame)}
    if not of_group:
        return None
    widest = max(of_group.values(), key=len)
    values = {key: v for key, v in _values(of_group, widest, ks).items() if key[1] in metrics_for(ks)}
    means = _means(values, widest)
    expected = expected_metrics(widest["listed"].to_numpy(), ks)
    return Group(means.table(), *means.size, expected, items=means.items)


def _means(values: Columns, rows: pl.DataFrame) -> Means:
    """Return the means of values [B] over rows, which give users and targets."""
    return Means(values, rows["user_id"].to_list(), rows["target"].to_list())


def _by_ranker(predictions: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return ranker → predictions, sorted by row.

    Candidates may be in any order, and a ranker may have fewer rows than another. Raise DataError if rankers have
    different users, targets or candidates in a row, or if a ranker has two predictions of a row.
    """
    repeated = predictions.filter(pl.struct("ranker", "row").is_duplicated())
    if len(repeated):
        raise DataError(
            f"ranker {repeated['ranker'][0]!r} has several predictions of row {repeated['row'][0]}; where "
            "predictions of two runs are joined, rename the ranker of one"
        )
    parts = predictions.partition_by("ranker", maintain_order=True)
    if not parts:
        raise DataError("nothing to evaluate: the predictions have no rows; predict at least one example")
    groups = {part["ranker"][0]: part.sort("row") for part in parts}
    key = ["row", "user_id", "target"]
    first = max(groups, key=lambda name: len(groups[name]))
    for name, part in groups.items():
        others = groups[first].filter(pl.col("row").is_in(part["row"].implode()))
        same_rows = part.select(key).equals(others.select(key))
        if not (same_rows and _same_candidates(part, others)):
            what = "candidate sets" if same_rows else "examples"
            raise DataError(f"rankers {first!r} and {name!r} scored different {what} and cannot be compared")
    return groups


def _same_candidates(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    if not ours["listed"].equals(theirs["listed"]):
        return False
    # Full ranking keeps only the best candidates, which differ between rankers.
    if any((frame["candidates"].list.len() < frame["listed"]).any() for frame in (ours, theirs)):
        return True
    first, second = ours["candidates"], theirs["candidates"]
    return first.equals(second) or first.list.sort().equals(second.list.sort())


def text_values(answers: pl.DataFrame) -> dict[str, Floats]:
    """Return the metrics of a ranker's texts, NaN for examples without text; {} if there is no text at all."""
    silent = answers["generated"].is_null().to_numpy()
    values: dict[str, Floats] = {}
    for column, (hit_rate, valid_ratio) in TEXT_METRICS.items():
        if column in answers.columns and not silent.all():
            hit = (answers[column] == answers["target"]).fill_null(False)
            values[hit_rate] = np.where(silent, np.nan, hit.to_numpy())
            values[valid_ratio] = np.where(silent, np.nan, answers[column].is_not_null().to_numpy())
    return values


def named_pairs(compare: str | Sequence[tuple[str, str]] | None, names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs (ranker, against) of `compare` as in `evaluate`; raise ConfigError for unknown names."""
    if compare is None:
        return [(b, a) for a, b in pairwise(names)]
    pairs = [(n, compare) for n in names if n != compare] if isinstance(compare, str) else list(compare)
    if unknown := sorted({n for pair in pairs for n in pair} - set(names)):
        near = did_you_mean(unknown[0], names)
        raise ConfigError(f"cannot compare with {', '.join(unknown)}: the rankers are {', '.join(names)}{near}")
    return pairs
