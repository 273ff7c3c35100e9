"""Recommenders that score candidates: reference rows and language models."""

from prefrec.rankers.base import GeneratingRanker, Ranker
from prefrec.rankers.catalogue import CatalogueRanker, Recommendation
from prefrec.rankers.lm import LMRanker, load_lm
from prefrec.rankers.reference import (
    CooccurrenceRanker,
    ItemKNNRanker,
    PopularityRanker,
    RandomRanker,
    TitleTfidfRanker,
    reference_rankers,
)
from prefrec.rankers.window import WindowCooccurrenceRanker

__all__ = [
    "CatalogueRanker",
    "CooccurrenceRanker",
    "GeneratingRanker",
    "ItemKNNRanker",
    "LMRanker",
    "PopularityRanker",
    "RandomRanker",
    "Ranker",
    "Recommendation",
    "TitleTfidfRanker",
    "WindowCooccurrenceRanker",
    "load_lm",
    "reference_rankers",
]
