"""EASE and implicit ALS in a recipe: fitted when they are first queried, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.rankers import Ranker
from prefrec.runs.stage import stage_key
from prefrec_systems.linear.ranker import ALSConfig, ALSRanker, EASEConfig, EASERanker, check_implicit


def linear_entry(
    inputs: RunInputs, config: EASEConfig | ALSConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return EASE or ALS, fitted to the training interactions when it is first queried."""
    log = inputs.data.train_interactions
    settings = config.model_dump(exclude={"name"})
    key = stage_key(**settings, data=inputs.data_key, seed=inputs.seed if config.kind == "als" else None)

    @cache
    def fitted() -> Ranker:
        if isinstance(config, EASEConfig):
            return EASERanker.fit(log, config.regularisation, config.name)
        return ALSRanker.fit(log, config, inputs.seed)

    def load(batch_size: int) -> Ranker:
        return fitted()

    return Entry(config.name, key, load, load)


def check_memory(config: EASEConfig, data: PreparedData) -> None:
    """Raise ConfigError if the inverse of the items × items matrix does not fit into free memory."""
    items, free = data.train_interactions["item_id"].n_unique(), psutil.virtual_memory().available
    needed = 3 * 8 * items**2
    if needed > free:
        raise ConfigError(
            f"rankers.{config.name}: EASE of {items:,} items needs {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: use kind als, or fewer items (data.item_core)"
        )


EASE = RankerKind(EASEConfig, linear_entry, check_data=check_memory)
ALS = RankerKind(ALSConfig, linear_entry, check_data=lambda config, data: check_implicit(config.name))
