"""The evaluation stage: rankers are asked about lists and about the whole catalogue, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from prefrec.data import PreparedData
from prefrec.evaluation import Audit, Evaluation, audit_prepared, evaluate_predictions, metrics_for
from prefrec.files import write_json
from prefrec.pipeline.entry import Entry, full_entries
from prefrec.pipeline.full_catalogue import FULL_CATALOGUE, ask_full
from prefrec.pipeline.kinds.retrieve import retrieve_entry
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.pipeline.score import ask_all, fit_references
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker

GENERATION_METRICS = ("gen_hr@1", "valid_ratio")
FULL_K = 10
"""Cut-off of the metrics over the whole catalogue."""


@dataclass(frozen=True)
class Scores:
    """What the evaluation stage found.

    Attributes:
        evaluation: metrics from log-probabilities, on all rows, with the audit of their lists.
        full_catalogue: metrics with the target among all items that the user did not take before; None where not
            asked for.
        generation: HR@1 and Valid Ratio by greedy generation on some rows, spread over the users; None where not
            asked for.
        predictions: of all rankers, on the lists.
    """

    evaluation: Evaluation
    full_catalogue: Evaluation | None
    generation: Evaluation | None
    predictions: pl.DataFrame


def evaluate_rankers(
    data: PreparedData,
    section: EvaluateSection,
    entries: Sequence[Entry],
    cache: Path,
    *,
    seed: int,
) -> Scores:
    """Ask the reference rankers and every entry; predictions already in `cache` are not made again.

    Comparisons are those of `comparison_pairs`.

    Raises:
        ConfigError: two rankers share a name.
        DataError: the split holds no rows.
    """
    references = fit_references(data, section, seed)
    rows = data.some(section.split, section.rows)
    predictions = ask_all(data, section, references, entries, rows, cache, seed=seed)
    silent = predictions.with_columns(generated=pl.lit(None, pl.String), choice=pl.lit(None, pl.String))
    audit = audit_prepared(data, section.split, "train", seed)
    return Scores(
        _measure(silent, data, section, entries, ks=section.ks, audit=audit, seed=seed),
        _full_catalogue(data, section, references, entries, cache / "full_catalogue", seed=seed),
        _generation(predictions, section, entries, seed=seed),
        predictions,
    )


def full_catalogue_metrics(
    data: PreparedData,
    data_key: str,
    section: EvaluateSection,
    entries: Sequence[Entry],
    folder: Path,
    hands_on: tuple[str, int] | None = None,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return what entries from outside a run reach over the whole catalogue, as `FULL_CATALOGUE` in `folder` has it.

    Args:
        data, section, seed: as for `evaluate_rankers`; all of `section.rows` are asked.
        data_key: changes with the data.
        entries: language models score all titles after the history alone, or what is handed on to them.
        folder: for metrics and predictions.
        hands_on: the name of a retriever, and how many items it hands on to each language model.

    Raises:
        ConfigError: there is no such retriever.
    """
    before = {e.name: e for e in entries}
    asked, pairs = full_entries(entries), list[tuple[str, str]]()
    if hands_on is not None:
        first, retrieve = hands_on
        asked = [e for e in entries if not e.in_main_line]
        for lm in (e.name for e in entries if e.in_main_line):
            pairs.append((f"{first}+{lm}", first))
            asked.append(retrieve_entry(pairs[-1][0], first, lm, retrieve, data, data_key, before, seed=seed))
    ks = sorted({*section.ks, *([hands_on[1]] if hands_on else [])})
    references = fit_references(data, section, seed)
    predictions = ask_full(data, section, references, asked, folder / "full_catalogue", seed=seed)
    evaluation = _measure(predictions, data, section, entries, ks=ks, pairs=pairs, seed=seed)
    metrics = {"split": section.split, "evaluation": evaluation.to_json(), "generation": None}
    if is_first():
        write_json(folder / FULL_CATALOGUE, metrics)
    return metrics


def metrics_json(split: str, scores: Scores) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    return {
        "split": split,
        "evaluation": scores.evaluation.to_json(),
        "full_catalogue": scores.full_catalogue.to_json() if scores.full_catalogue else None,
        "generation": scores.generation.to_json() if scores.generation else None,
    }


def comparison_pairs(lms: Sequence[str], models: Sequence[str], best: str | None) -> list[tuple[str, str]]:
    """Return who is compared with whom: each language model with the one before, each model with the best reference.

    Args:
        lms: language models of the main line, in the order of training.
        models: all rankers that are no reference rows.
        best: of the reference rows; None: there is none.
    """
    chain = list(zip(lms[1:], lms[:-1], strict=True))
    return chain + [(name, best) for name in models if best is not None]


def best_reference(predictions: pl.DataFrame, references: Sequence[str]) -> str | None:
    """Return the reference row with the highest mean NDCG@10, of equal ones the first; None where there is none."""
    ndcg = metrics_for([10])["ndcg@10"]
    names = [n for n in predictions["ranker"].unique(maintain_order=True) if n in references]
    ranks = {n: predictions.filter(pl.col("ranker") == n)["rank"].cast(pl.Int64).to_numpy() for n in names}
    return max(names, key=lambda n: float(ndcg(ranks[n]).mean()), default=None)


def _measure(
    predictions: pl.DataFrame,
    data: PreparedData,
    section: EvaluateSection,
    entries: Sequence[Entry],
    *,
    ks: Sequence[int],
    pairs: Sequence[tuple[str, str]] = (),
    audit: Audit | None = None,
    seed: int,
) -> Evaluation:
    """Return the numbers of one block of the table; `pairs` are compared beside those of `comparison_pairs`."""
    names = predictions["ranker"].unique(maintain_order=True).to_list()
    best = best_reference(predictions, section.references)
    lms = [e.name for e in entries if e.in_main_line and e.name in names]
    compare = [*comparison_pairs(lms, [n for n in names if n not in section.references], best), *pairs]
    known = set(data.train_interactions["item_id"])
    evaluation = evaluate_predictions(
        predictions, ks=ks, compare=list(dict.fromkeys(compare)), audit=audit, known_items=known, seed=seed
    )
    return replace(evaluation, best_reference=best)


def _full_catalogue(
    data: PreparedData,
    section: EvaluateSection,
    references: Sequence[Ranker],
    entries: Sequence[Entry],
    cache: Path,
    *,
    seed: int,
) -> Evaluation | None:
    """Return the block of the whole catalogue, on some of the rows under test; None where none are asked for."""
    if section.full_rows == 0:
        return None
    limits = [n for n in (section.rows, section.full_rows) if n is not None]
    some = section.model_copy(update={"rows": min(limits, default=None)})
    predictions = ask_full(data, some, references, full_entries(entries), cache, seed=seed)
    return _measure(predictions, data, section, entries, ks=[FULL_K], seed=seed)


def _generation(
    predictions: pl.DataFrame, section: EvaluateSection, entries: Sequence[Entry], *, seed: int
) -> Evaluation | None:
    """Return the numbers of the rows that were asked for text; None where none were."""
    generated = predictions.filter(pl.col("generated").is_not_null())
    if generated.is_empty():
        return None
    writers = set(generated["ranker"])
    pairs = comparison_pairs([e.name for e in entries if e.in_main_line and e.name in writers], [], None)
    whole = evaluate_predictions(generated, ks=section.ks, compare=pairs, seed=seed)
    kept = {r: {m: i for m, i in of.items() if m in GENERATION_METRICS} for r, of in whole.metrics.items()}
    comparisons = [c for c in whole.comparisons if c.metric in GENERATION_METRICS]
    return replace(whole, metrics=kept, comparisons=comparisons, expected={}, values={}, predictions=None)
