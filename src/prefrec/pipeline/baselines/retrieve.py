"""The stage of retrieve-then-rank: nothing to train; what the pair reaches over the whole catalogue is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.console import say
from prefrec.evaluation import Evaluation
from prefrec.pipeline.full_catalogue import FULL_CATALOGUE, evaluate_full_catalogue, full_entries, retrieve_entry
from prefrec.pipeline.ingredients import Ingredients, due
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.pipeline.score import Entry, RankerEntry
from prefrec.pipeline.stage import stage, stage_key, write_json
from prefrec.processes import is_first
from prefrec.rankers.retrieve import RetrieveThenRankConfig


def retrieve_stage(
    made_of: Ingredients, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> RankerEntry:
    """Put the pair together, and write its metrics over the whole catalogue to `full_catalogue.json`."""
    entry = retrieve_entry(
        config.name,
        config.retriever,
        config.ranker,
        config.retrieve,
        made_of.data,
        made_of.data_key,
        made_of.model,
        before,
        seed=made_of.seed,
    )
    held_out = made_of.data.held_out_interactions
    more = {} if held_out is None else {"held_out": held_out.select("user_id", "item_id").to_dict(as_series=False)}
    key = stage_key(entry=entry.key, data=made_of.data_key, rows=config.rows, **more)
    if due(folder, key, config.name, [FULL_CATALOGUE]):
        with stage(folder, key, config.kind, config.model_dump()):
            _measure(made_of, config, folder, entry, before)
    return entry


def _measure(
    made_of: Ingredients,
    config: RetrieveThenRankConfig,
    folder: Path,
    entry: RankerEntry,
    before: Mapping[str, Entry],
) -> None:
    ks = sorted({1, 5, 10, config.retrieve})
    section = EvaluateSection(rows=config.rows, ks=ks, batch_size=made_of.batch_size)
    retriever = [before[config.retriever]] if config.retriever in before else []
    first = full_entries(retriever, made_of.data, made_of.model) or retriever
    evaluation = evaluate_full_catalogue(
        made_of.data,
        made_of.model,
        section,
        [*first, entry],
        folder / "predictions",
        compare=[(entry.name, config.retriever)],
        seed=made_of.seed,
    )
    if is_first():
        write_json(folder / FULL_CATALOGUE, {"split": section.split, "evaluation": evaluation.to_json()})
    say(
        f"{entry.name}: {_reached(evaluation, entry.name)} among {len(made_of.data.catalogue)} items; "
        f"{config.retriever} alone {_reached(evaluation, config.retriever)}"
    )


def _reached(evaluation: Evaluation, name: str) -> str:
    of = evaluation.metrics[name]
    return f"HR@10 {of['hr@10'].mean:.3f}, NDCG@10 {of['ndcg@10'].mean:.3f}"
