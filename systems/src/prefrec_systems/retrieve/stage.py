"""Retrieve-then-rank in a recipe: it combines two existing rankers and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefrec.pipeline.entry import Entry, Ingredients, part_entry
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import REFERENCE_RANKERS, Recipe, check_known
from prefrec.runs.stage import stage_key
from prefrec_systems.retrieve.ranker import RetrieveThenRank, RetrieveThenRankConfig


def retrieve_stage(
    made_of: Ingredients, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return a retriever and a ranker as one entry."""
    name, second = config.name, before[config.ranker]
    first = part_entry(made_of, config.retriever, name, before, "retriever")
    key = stage_key(
        retrieve=config.retrieve, seed=made_of.seed, retriever=first.key, ranker=second.key, model=second.model
    )
    first = first.full or first

    def load(batch_size: int) -> RetrieveThenRank:
        pair = first.load(batch_size), second.load(batch_size)
        return RetrieveThenRank(name, *pair, config.retrieve, seed=made_of.seed)

    return Entry(name, key, load, load)


def _check_recipe(config: RetrieveThenRankConfig, recipe: Recipe, before: Sequence[str]) -> None:
    field = f"rankers.{config.name}.retriever"
    check_known(f"rankers.{config.name}.ranker", config.ranker, before)
    check_known(field, config.retriever, [*REFERENCE_RANKERS, *before])
    if config.retriever in recipe.lm_rankers:
        raise ValueError(
            f"{field}: {config.retriever!r} is shown the titles that it scores, which cannot be the whole catalogue; "
            "name a sequential recommender, MoRec or a reference row"
        )


KIND = RankerKind(RetrieveThenRankConfig, retrieve_stage, _check_recipe, composed=True)
