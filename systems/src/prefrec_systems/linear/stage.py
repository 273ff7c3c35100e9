"""Implicit ALS in a recipe: fitted when it is first queried, which takes seconds."""

from __future__ import annotations

from prefrec.runs.stage import stage_key
from prefrec.stages.fitted import FittedStage
from prefrec_systems.linear.ranker import ALSConfig, ALSRanker


class ALSStage(FittedStage):
    """ALS, fitted to the training interactions."""

    Config = ALSConfig
    served = False

    @property
    def key(self) -> str:
        settings = self.config.model_dump(exclude={"name"})
        # Predictions of the time when the weight was alpha must not be used.
        return stage_key(**settings, weight="1 + alpha", data=self.inputs.data_key, seed=self.inputs.seed)

    def fit(self) -> ALSRanker:
        return ALSRanker.fit(self.inputs.data.train_interactions, self.config, self.inputs.seed)
