"""The whole catalogue as candidates: which rankers can be asked so, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import polars as pl

from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.errors import ConfigError
from prefrec.evaluation import whole_catalogue
from prefrec.pipeline.recipe import EvaluateSection, ModelSection, ReferenceName
from prefrec.pipeline.score import (
    Entry,
    LMEntry,
    RankerEntry,
    SequentialEntry,
    ask_all,
    entry_ranker,
    known_entry,
    model_key,
)
from prefrec.rankers import CatalogueRanker, LMRanker, Ranker
from prefrec.rankers.reference import reference_ranker
from prefrec.rankers.retrieve import RetrieveThenRank
from prefrec.runs.stage import stage_key

FULL_CATALOGUE = "full_catalogue.json"
"""File of the metrics of `prefrec evaluate --full-catalogue`."""
KEPT = 10
"""Items kept of each row's order: whole lists are millions of names, and metrics read the target's rank alone."""


def retrieve_entry(
    name: str,
    retriever: str,
    ranker: str,
    retrieve: int,
    data: PreparedData,
    data_key: str,
    model: ModelSection,
    before: Mapping[str, Entry],
    *,
    seed: int,
) -> RankerEntry:
    """A retriever and a ranker as one entry.

    Args:
        name: of the entry.
        retriever: a reference row, or an entry that is no language model.
        ranker: an entry.
        retrieve: how many items go from one to the other.
        data, data_key: prepared rows, and the key that changes with them.
        model: how language models among the entries are asked.
        before: entries by name.
        seed: of draws, and of the reference row `random`.

    Raises:
        ConfigError: there is no such retriever or ranker.
    """
    second = known_entry(ranker, name, before, "ranker")
    key = {"retrieve": retrieve, "seed": seed, "ranker": second.key}
    if isinstance(second, LMEntry):
        key["model"] = model_key(model)
    if retriever in get_args(ReferenceName):
        key |= {"retriever": retriever, "data": data_key}

        def load_first() -> Ranker:
            return reference_ranker(retriever, data.train_interactions, data.catalogue, seed, data.validation)

    else:
        first = known_entry(retriever, name, before, "retriever", get_args(ReferenceName))
        if isinstance(first, LMEntry):
            raise ConfigError(
                f"{name}.retriever: {retriever!r} is shown the titles that it scores, which cannot be the whole "
                "catalogue; name a sequential recommender, MoRec or a reference row"
            )
        key["retriever"] = first.key
        (retrieving,) = full_entries([first], data, model) or [first]

        def load_first() -> Ranker:
            return entry_ranker(retrieving, data, model)

    def load() -> Ranker:
        return RetrieveThenRank(name, load_first(), entry_ranker(second, data, model), retrieve, seed=seed)

    return RankerEntry(name, stage_key(**key), load, load_full=load)


def catalogue_entry(entry: LMEntry, data: PreparedData, model: ModelSection) -> RankerEntry:
    """A language model that scores every title after the history alone."""

    def load() -> Ranker:
        return CatalogueRanker(cast(LMRanker, entry_ranker(entry, data, model)))

    return RankerEntry(entry.name, stage_key(lm=entry.key, model=model_key(model), candidates="none shown"), load)


def full_entries(entries: Sequence[Entry], data: PreparedData, model: ModelSection) -> list[Entry]:
    """Return the entries that can be asked about the whole catalogue, as they are asked so.

    A language model scores every title after the history alone. Left out are rankers that must be shown what they
    score, or ask a server about every item.
    """
    found: list[Entry] = []
    for entry in entries:
        if isinstance(entry, LMEntry):
            found.append(catalogue_entry(entry, data, model))
        elif isinstance(entry, SequentialEntry):
            found.append(entry)
        elif entry.load_full is not None:
            found.append(replace(entry, load=entry.load_full))
    return found


def ask_full(
    data: PreparedData,
    model: ModelSection,
    section: EvaluateSection,
    entries: Sequence[Entry],
    cache: Path,
    *,
    seed: int,
) -> pl.DataFrame:
    """Return predictions with the target among all items but those that the row's user took before it.

    Of each row the rank of the target and the first `KEPT` items are kept.

    Args:
        data: prepared rows.
        model: unused but for the keys of known answers.
        section: split, rows and reference rows.
        entries: none may be an `LMEntry`: see `full_entries` and `retrieve_entry`.
        cache: folder; predictions already there are not made again.
        seed: of ties.

    Raises:
        ConfigError: two rankers share a name.
        DataError: the split holds no rows.
    """
    silent = section.model_copy(update={"generate_rows": 0})
    return ask_all(data, model, silent, entries, full_rows(data, section), cache, seed=seed, top=KEPT)


def full_rows(data: PreparedData, section: EvaluateSection) -> list[RankingExample]:
    """Return the rows under test with all items as candidates but those that the row's user took before."""
    asked = data.some(section.split, section.rows)
    return whole_catalogue(asked, data.catalogue, seen_items(data, asked))
