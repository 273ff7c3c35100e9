"""The whole catalogue as candidates: which rankers can be asked so, and what they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

import polars as pl

from prefrec.data import PreparedData
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import Evaluation, evaluate_predictions, predict, whole_catalogue
from prefrec.pipeline.recipe import EvaluateSection, ModelSection, ReferenceName
from prefrec.pipeline.score import Entry, LMEntry, RankerEntry, ask_models, entry_ranker, model_key
from prefrec.pipeline.stage import stage_key
from prefrec.rankers import CatalogueRanker, LMRanker, Ranker, reference_rankers
from prefrec.rankers.retrieve import RetrieveThenRank


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
    second = _known(ranker, name, before, "ranker")
    key = {"retrieve": retrieve, "seed": seed, "ranker": second.key}
    if isinstance(second, LMEntry):
        key["model"] = model_key(model)
    if retriever in get_args(ReferenceName):
        key |= {"retriever": retriever, "data": data_key}

        def load_first() -> Ranker:
            return next(r for r in reference_rankers(data.train_interactions, seed) if r.name == retriever)

    else:
        first = _known(retriever, name, before, "retriever", get_args(ReferenceName))
        if isinstance(first, LMEntry):
            raise ConfigError(
                f"{name}.retriever: {retriever!r} is shown the titles that it scores, which cannot be the whole "
                "catalogue; name a sequential recommender, MoRec or a reference row"
            )
        key["retriever"] = first.key

        def load_first() -> Ranker:
            return entry_ranker(first, data, model)

    def load() -> Ranker:
        return RetrieveThenRank(name, load_first(), entry_ranker(second, data, model), retrieve, seed=seed)

    return RankerEntry(name, stage_key(**key), load)


def catalogue_entry(entry: LMEntry, data: PreparedData, model: ModelSection) -> RankerEntry:
    """A language model that scores every title after the history alone."""

    def load() -> Ranker:
        return CatalogueRanker(cast(LMRanker, entry_ranker(entry, data, model)))

    return RankerEntry(entry.name, stage_key(lm=entry.key, model=model_key(model), candidates="none shown"), load)


def evaluate_full_catalogue(
    data: PreparedData,
    model: ModelSection,
    section: EvaluateSection,
    entries: Sequence[Entry],
    cache: Path,
    *,
    compare: Sequence[tuple[str, str]],
    seed: int,
) -> Evaluation:
    """Metrics with the target among all items but those of the row's history and the user's training interactions.

    Args:
        data: prepared rows.
        model: unused but for the keys of known answers.
        section: split, rows, reference rows and cut-offs.
        entries: none may be an `LMEntry`: see `catalogue_entry` and `retrieve_entry`.
        cache: folder; predictions already there are not made again.
        compare: pairs (ranker, against) of names.
        seed: of ties and intervals.

    Raises:
        DataError: the split holds no rows.
    """
    seen = dict(data.train_interactions.group_by("user_id").agg("item_id").iter_rows())
    rows = whole_catalogue(data.split(section.split)[: section.rows], data.catalogue, seen)
    if not rows:
        raise DataError(f"nothing to evaluate: the data has no {section.split} rows")
    frames = [
        predict(r, rows, data.catalogue, generate=False, seed=seed)
        for r in reference_rankers(data.train_interactions, seed)
        if r.name in section.references
    ]
    silent = section.model_copy(update={"generate_rows": 0})
    frames += ask_models(data, model, silent, entries, rows, cache, seed=seed)
    return evaluate_predictions(pl.concat(frames), ks=section.ks, compare=compare, seed=seed)


def _known(name: str, of: str, entries: Mapping[str, Entry], field: str, more: Sequence[str] = ()) -> Entry:
    if name not in entries:
        raise ConfigError(f"{of}.{field}: there is no {name!r} here; there are {', '.join([*more, *entries])}")
    return entries[name]
