"""The stage of retrieve-then-rank: two rankers that exist are put together, nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.pipeline.full_catalogue import retrieve_entry
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.score import Entry, RankerEntry
from prefrec.rankers.retrieve import RetrieveThenRankConfig


def retrieve_stage(
    made_of: Ingredients, config: RetrieveThenRankConfig, folder: Path, before: Mapping[str, Entry]
) -> RankerEntry:
    """Return the pair as an entry; it leaves nothing in `folder`.

    Raises:
        ConfigError: there is no such retriever or ranker.
    """
    return retrieve_entry(
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
