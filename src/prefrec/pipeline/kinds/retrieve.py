"""Retrieve-then-rank in a recipe: it combines two existing rankers and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefrec.errors import ConfigError
from prefrec.pipeline.entry import Entry, Ingredients, known_entry, reference_entry
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import REFERENCE_RANKERS, Recipe, check_known
from prefrec.rankers.retrieve import RetrieveThenRank, RetrieveThenRankConfig
from prefrec.runs.stage import stage_key


def retrieve_stage(
    made_of: Ingredients, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return a retriever and a ranker as one entry; raise ConfigError if one is unknown, or cannot retrieve."""
    name, retriever = config.name, config.retriever
    second = known_entry(config.ranker, name, before, "ranker")
    key: dict[str, Any] = {"retrieve": config.retrieve, "seed": made_of.seed, "ranker": second.key}
    key |= {"model": second.model} if second.in_main_line else {}
    if retriever in REFERENCE_RANKERS:
        first = reference_entry(made_of, retriever)
        key |= {"retriever": retriever, "data": made_of.data_key}
    else:
        first = known_entry(retriever, name, before, "retriever", REFERENCE_RANKERS)
        if first.in_main_line:
            raise ConfigError(_shown_titles(f"{name}.retriever", retriever))
        key["retriever"] = first.key
    first = first.full or first

    def load(batch_size: int) -> RetrieveThenRank:
        pair = first.load(batch_size), second.load(batch_size)
        return RetrieveThenRank(name, *pair, config.retrieve, seed=made_of.seed)

    return Entry(name, stage_key(**key), load, load)


def _check_recipe(config: RetrieveThenRankConfig, recipe: Recipe, before: Sequence[str]) -> None:
    field = f"rankers.{config.name}.retriever"
    check_known(f"rankers.{config.name}.ranker", config.ranker, before)
    check_known(field, config.retriever, [*REFERENCE_RANKERS, *before])
    if config.retriever in recipe.lm_rankers:
        raise ValueError(_shown_titles(field, config.retriever))


def _shown_titles(field: str, retriever: str) -> str:
    return (
        f"{field}: {retriever!r} is shown the titles that it scores, which cannot be the whole catalogue; name a "
        "sequential recommender, MoRec or a reference row"
    )


KIND = RankerKind(RetrieveThenRankConfig, retrieve_stage, _check_recipe)
