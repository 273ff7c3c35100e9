"""Title towers in a recipe."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from prefrec.lm.names import base_digest
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.rankers.words import TFIDF
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec.stages.item_texts import shown_items
from prefrec.stages.title_vectors import text_vectors
from prefrec.towers.network import Floats
from prefrec.towers.title_tower import RANDOM, TitleTowerConfig, chosen_epochs, load_tower
from prefrec.towers.tower_training import train_tower

RANDOM_WIDTH = 384
"""Width of random vectors, which is that of MiniLM."""


class TitleTowerStage(RankerStage):
    """A title tower. In a refit it trains for as many epochs as validation examples chose for `first`."""

    Config = TitleTowerConfig
    served = True
    config: TitleTowerConfig

    @cached_property
    def key(self) -> str:
        if self.first:
            return stage_key(data=self.inputs.data_key, refit=self.first.key)
        vectors = self.config.vectors
        shown = shown_items(self.inputs.model, self.inputs.data.catalogue)
        return stage_key(
            data=self.inputs.data_key,
            seed=self.inputs.seed,
            tower=self.config.decisive(),
            vectors=vectors if vectors in (RANDOM, TFIDF) else base_digest(vectors),
            dtype=self.inputs.model.dtype,
            **({"item_text": stage_key(texts=shown)} if shown else {}),
        )

    def make(self) -> None:
        if not is_first():
            return
        epochs = chosen_epochs(self.first.folder) if self.first else None
        train_tower(self.inputs.data, self.titles(), self.config, self.folder, seed=self.inputs.seed, epochs=epochs)

    def load(self, batch_size: int) -> Ranker:
        return load_tower(self.folder, self.name)

    def titles(self) -> Floats:
        """Return the title vectors [I, T] of all items."""
        catalogue = self.inputs.data.catalogue
        if self.config.vectors == RANDOM:
            rng = np.random.default_rng(self.inputs.seed)
            return rng.standard_normal((len(catalogue), RANDOM_WIDTH), np.float32)
        shown = shown_items(self.inputs.model, catalogue)
        texts = [shown.get(title, title) for title in catalogue.titles.values()]
        return text_vectors(self.config.vectors, texts, self.inputs.model.dtype)
