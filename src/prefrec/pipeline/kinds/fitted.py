"""A kind of ranker from a class with `fit` and `score`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.rankers.base import FittedRanker, Ranker
from prefrec.rankers.config import RankerConfig
from prefrec.runs.stage import stage_key


def fitted_kind(ranker: type[FittedRanker], config: type[RankerConfig]) -> RankerKind:
    """Return a kind of ranker for recipes, from a class with `fit` and `score`.

    A run or a server fits the ranker once, when it first queries it. With `refit` it is fitted twice: to the training
    log for validation examples, and to training and validation interactions for test examples. Cached predictions
    depend on the data and on the recipe's entry, not on the code: after a change of the class, give the entry a new
    name.

    Args:
        ranker: the class, created with the recipe's entry.
        config: class of the entry, with defaults for `kind` and `name`.
    """

    def entry(inputs: RunInputs, settings: RankerConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
        @cache
        def fitted() -> Ranker:
            return ranker(settings).fit(inputs.data)

        def load(batch_size: int) -> Ranker:
            return fitted()

        key = stage_key(data=inputs.data_key, fitted=settings.model_dump(mode="json"))
        return Entry(settings.name, key, load, load)

    return RankerKind(config, entry, served=True)
