"""Retrieve-then-rank in a recipe: it combines two existing rankers and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.pipeline.entry import Entry, known_entry, reference_entry
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import REFERENCE_RANKERS, Recipe, check_known
from prefrec.rankers.retrieve import RetrieveThenRank, RetrieveThenRankConfig
from prefrec.runs.stage import stage_key


def retrieve_stage(
    made_of: Ingredients, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return the pair as an entry; it leaves nothing in `folder`.

    Raises:
        ConfigError: the retriever or the ranker is unknown.
    """
    pair = config.retriever, config.ranker, config.retrieve
    return retrieve_entry(config.name, *pair, made_of.data, made_of.data_key, before, seed=made_of.seed)


def retrieve_entry(
    name: str,
    retriever: str,
    ranker: str,
    retrieve: int,
    data: PreparedData,
    data_key: str,
    before: Mapping[str, Entry],
    *,
    seed: int,
) -> Entry:
    """Return a retriever and a ranker as one entry.

    Args:
        name: of the entry.
        retriever: a reference row, or an entry outside the main line.
        ranker: an entry.
        retrieve: how many items go from one to the other.
        data, data_key: prepared rows, and the key that changes with them.
        before: entries by name.
        seed: of draws, and of the reference row `random`.

    Raises:
        ConfigError: the retriever or the ranker is unknown.
    """
    second = known_entry(ranker, name, before, "ranker")
    key: dict[str, Any] = {"retrieve": retrieve, "seed": seed, "ranker": second.key}
    key |= {"model": second.model} if second.in_main_line else {}
    if retriever in REFERENCE_RANKERS:
        first = reference_entry(retriever, data, data_key, seed)
        key |= {"retriever": retriever, "data": data_key}
    else:
        first = known_entry(retriever, name, before, "retriever", REFERENCE_RANKERS)
        if first.in_main_line:
            raise ConfigError(_shown_titles(f"{name}.retriever", retriever))
        key["retriever"] = first.key
    retrieving = first.full or first

    def load(batch_size: int) -> RetrieveThenRank:
        return RetrieveThenRank(name, retrieving.load(batch_size), second.load(batch_size), retrieve, seed=seed)

    return Entry(name, stage_key(**key), load, load)


def _check_recipe(config: RetrieveThenRankConfig, recipe: Recipe, before: Sequence[str]) -> None:
    place = f"rankers.{config.name}"
    check_known(f"{place}.ranker", config.ranker, before)
    check_known(f"{place}.retriever", config.retriever, [*REFERENCE_RANKERS, *before])
    if config.retriever in recipe.lm_rankers:
        raise ValueError(_shown_titles(f"{place}.retriever", config.retriever))


def _shown_titles(field: str, retriever: str) -> str:
    return (
        f"{field}: {retriever!r} is shown the titles that it scores, which cannot be the whole catalogue; name a "
        "sequential recommender, MoRec or a reference row"
    )


KIND = RankerKind(RetrieveThenRankConfig, retrieve_stage, _check_recipe)
