"""Retrieve-then-rank in a recipe: two rankers are combined, and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import Recipe
from prefrec.runs.stage import stage_key
from prefrec_systems.retrieve.ranker import RetrieveThenRank, RetrieveThenRankConfig


def retrieve_entry(
    inputs: RunInputs, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return a retriever and a ranker as one entry."""
    name, first, second = config.name, before[config.retriever], before[config.ranker]
    key = stage_key(
        retrieve=config.retrieve, seed=inputs.seed, retriever=first.key, ranker=second.key, model=second.model
    )
    first = first.full or first

    def load(split: str, batch_size: int) -> RetrieveThenRank:
        pair = first.on(split).load(batch_size), second.on(split).load(batch_size)
        return RetrieveThenRank(name, *pair, config.retrieve, seed=inputs.seed)

    for_test = partial(load, "test")
    crossed = partial(load, "validation") if first.crossed or second.crossed else None
    return Entry(name, key, for_test, for_test, is_slow=True, crossed=crossed)


def _check_recipe(config: RetrieveThenRankConfig, recipe: Recipe, before: Sequence[str]) -> None:
    if config.retriever in recipe.lm_rankers:
        raise ValueError(
            f"rankers.{config.name}.retriever: {config.retriever!r} only scores titles that it is given, "
            "so it cannot retrieve; choose a sequential recommender, MoRec or a baseline"
        )


def _needs(config: RetrieveThenRankConfig) -> dict[str, list[str]]:
    return {"retriever": [config.retriever], "ranker": [config.ranker]}


KIND = RankerKind(
    RetrieveThenRankConfig, retrieve_entry, _needs, queries=True, served=True, check_recipe=_check_recipe
)
