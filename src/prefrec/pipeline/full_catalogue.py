"""The whole catalogue as candidates: what rankers answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.evaluation import whole_catalogue
from prefrec.pipeline.entry import Entry
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.pipeline.score import ask_all
from prefrec.rankers.base import Ranker

FULL_CATALOGUE = "full_catalogue.json"
"""File of the metrics of `prefrec evaluate --full-catalogue`."""
KEPT = 10
"""Items kept of each row's order: whole lists are millions of names, and metrics read the target's rank alone."""


def ask_full(
    data: PreparedData,
    section: EvaluateSection,
    references: Sequence[Ranker],
    entries: Sequence[Entry],
    cache: Path,
    *,
    seed: int,
) -> pl.DataFrame:
    """Return predictions with the target among all items but those that the row's user took before it.

    Of each row the rank of the target and the first `KEPT` items are kept.

    Args:
        data: prepared rows.
        section: split and rows.
        references: from `fit_references`.
        entries: as they are asked about the whole catalogue: see `full_entries`.
        cache: folder; predictions already there are not made again.
        seed: of ties.

    Raises:
        ConfigError: two rankers share a name.
        DataError: the split holds no rows.
    """
    silent = section.model_copy(update={"generate_rows": 0})
    return ask_all(data, silent, references, entries, full_rows(data, section), cache, seed=seed, top=KEPT)


def full_rows(data: PreparedData, section: EvaluateSection) -> list[RankingExample]:
    """Return the rows under test with all items as candidates but those that the row's user took before."""
    asked = data.some(section.split, section.rows)
    return whole_catalogue(asked, data.catalogue, seen_items(data, asked))
