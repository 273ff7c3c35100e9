"""Baselines of prepared data, each fitted once per log."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import polars as pl

from prefrec.data import PreparedData
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import BASELINES, CHOOSING, baseline_rankers, unable


class FittedBaselines:
    """Baselines of prepared data, for the table, blends and the choice of a default. Each is fitted once per log.

    Validation examples choose settings once, on the training log, which does not contain their targets. Baselines
    that count another log have the same settings.
    """

    def __init__(self, data: PreparedData, seed: int) -> None:
        self.data = data
        self.seed = seed
        self._known = cache(data.known_interactions)
        self._fitted: dict[tuple[bool, str], Ranker] = {}
        self._settings: dict[str, Mapping[str, Any]] = {}

    def before(self, split: str, names: Collection[str]) -> list[Ranker]:
        """Return baselines that count what is known before the examples of a split, in the order of tables.

        Those that cannot be fitted to that log are absent (`unable`).
        """
        log = self._known(split)
        is_training = log is self.data.train_interactions
        if new := [name for name in names if (is_training, name) not in self._fitted]:
            for ranker in self.counting(log, new):
                self._fitted[is_training, ranker.name] = ranker
        found = [self._fitted.get((is_training, name)) for name in BASELINES if name in names]
        return [ranker for ranker in found if ranker is not None]

    def counting(self, log: pl.DataFrame, names: Collection[str]) -> list[Ranker]:
        """Return baselines that count a log, in the order of tables. They are not kept."""
        data = self.data
        if log is not data.train_interactions:
            without = unable(log, names)
            new = [kind.name for kind in CHOOSING if kind.name not in self._settings]
            if wanted := [name for name in new if name in names and name not in without]:
                self.counting(data.train_interactions, wanted)  # chooses their settings
        rankers = baseline_rankers(log, data.catalogue, self.seed, names, data.validation, self._settings)
        for ranker in rankers:
            if isinstance(ranker, CHOOSING):
                self._settings[ranker.name] = ranker.settings
        return rankers

    def forget(self) -> None:
        """Forget all baselines and logs, to free their memory, but not their settings."""
        self._fitted.clear()
        self._known.cache_clear()
