"""Recommenders that score candidates: baselines and language models.

Language models are imported on first use, because torch and transformers take seconds to import.
"""

from typing import TYPE_CHECKING, Any

from prefrec.extras import imported
from prefrec.rankers.base import FittedRanker, GeneratingRanker, Ranker, Recommendation
from prefrec.rankers.baselines import (
    CooccurrenceRanker,
    ItemKNNRanker,
    PopularityRanker,
    RandomRanker,
    TitleTfidfRanker,
    baseline_rankers,
)
from prefrec.rankers.matrices import pad_scores
from prefrec.rankers.window import WindowCooccurrenceRanker

if TYPE_CHECKING:
    from prefrec.rankers.catalogue import CatalogueRanker
    from prefrec.rankers.lm import LMRanker, load_lm

_LATE = {"CatalogueRanker": "catalogue", "LMRanker": "lm", "load_lm": "lm"}

__all__ = [
    "CatalogueRanker",
    "CooccurrenceRanker",
    "FittedRanker",
    "GeneratingRanker",
    "ItemKNNRanker",
    "LMRanker",
    "PopularityRanker",
    "RandomRanker",
    "Ranker",
    "Recommendation",
    "TitleTfidfRanker",
    "WindowCooccurrenceRanker",
    "baseline_rankers",
    "load_lm",
    "pad_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(imported(f"{__name__}.{_LATE[name]}"), name)
