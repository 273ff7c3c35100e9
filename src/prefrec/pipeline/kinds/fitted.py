"""A kind of rankers from a class with `fit` and `score`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.rankers.base import FittedRanker, Ranker
from prefrec.rankers.config import RankerConfig
from prefrec.runs.stage import stage_key


def fitted_kind(ranker: type[FittedRanker], config: type[RankerConfig]) -> RankerKind:
    """Return a kind of rankers for recipes, made from a class with `fit` and `score`.

    The ranker is fitted when it is first queried, in a run as in a server. Predictions are kept by the data and the
    entry of the recipe, so a change of the class is not noticed: give the entry a new name then.

    Args:
        ranker: the class; it is created with the entry of the recipe.
        config: class of the entry, with defaults for `kind` and `name`.
    """

    def entry(inputs: RunInputs, settings: RankerConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
        def load(batch_size: int) -> Ranker:
            return ranker(settings).fit(inputs.data)

        key = stage_key(data=inputs.data_key, fitted=settings.model_dump(mode="json"))
        return Entry(settings.name, key, load, load)

    return RankerKind(config, entry, served=True)
