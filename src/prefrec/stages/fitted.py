"""A stage of a class with `fit` and `score`."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from prefrec.rankers import base
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage


class FittedStage(RankerStage):
    """A ranker that a run or a server fits once, when it is first queried. No file is written.

    With `refit` it is fitted twice: to the training log for validation examples, and to training and validation
    interactions for test examples. Cached predictions depend on the data and on the recipe's entry, not on the code:
    after a change of the class, give the entry a new name.

    Attributes:
        Config: class of the entry, with defaults for `kind` and `name`.
        Ranker: class of the ranker, created with the entry.
    """

    Ranker: ClassVar[type[base.FittedRanker]]
    served = True

    @cached_property
    def key(self) -> str:
        return stage_key(data=self.inputs.data_key, fitted=self.settings)

    def load(self, batch_size: int) -> base.Ranker:
        return self._fitted

    def fit(self) -> base.Ranker:
        """Return the ranker, fitted to the log."""
        return self.Ranker(self.config).fit(self.inputs.data)

    @cached_property
    def _fitted(self) -> base.Ranker:
        return self.fit()
