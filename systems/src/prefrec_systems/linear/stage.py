"""Implicit ALS in a recipe: fitted when it is first queried, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.rankers import Ranker
from prefrec.runs.stage import stage_key
from prefrec_systems.linear.ranker import ALSConfig, ALSRanker, check_implicit


def als_entry(inputs: RunInputs, config: ALSConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return ALS, fitted to the training interactions when it is first queried."""
    key = stage_key(**config.model_dump(exclude={"name"}), data=inputs.data_key, seed=inputs.seed)

    @cache
    def fitted() -> Ranker:
        return ALSRanker.fit(inputs.data.train_interactions, config, inputs.seed)

    def load(batch_size: int) -> Ranker:
        return fitted()

    return Entry(config.name, key, load, load)


ALS = RankerKind(ALSConfig, als_entry, check_data=lambda config, data: check_implicit(config.name))
