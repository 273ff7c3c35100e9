"""Title towers in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from prefrec.console import say
from prefrec.data import RankingExample
from prefrec.lm.names import base_digest
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.baselines import PopularityRanker
from prefrec.rankers.softmax import softmax_sample
from prefrec.rankers.words import TFIDF
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec.stages.item_texts import shown_items
from prefrec.stages.title_vectors import text_vectors
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
        mined = {"miner": self.miner.key} if self.miner else {}
        if self.first:
            return stage_key(data=self.inputs.data_key, refit=self.first.key, **mined)
        vectors = self.config.vectors
        shown = shown_items(self.inputs.model, self.inputs.data.catalogue)
        return stage_key(
            data=self.inputs.data_key,
            seed=self.seed,
            tower=self.config.decisive(),
            vectors=vectors if vectors in (RANDOM, TFIDF) else base_digest(vectors),
            dtype=self.inputs.model.dtype,
            **({"item_text": stage_key(texts=shown)} if shown else {}),
            **mined,
        )

    def make(self) -> None:
        if not is_first():
            return
        epochs = chosen_epochs(self.first.folder) if self.first else None
        draw = None if self.config.negatives_from == "all" else self.sample
        train_tower(
            self.inputs.data, self.titles(), self.config, self.folder, seed=self.seed, epochs=epochs, draw=draw
        )

    def load(self, batch_size: int) -> Ranker:
        return load_tower(self.folder, self.name)

    @property
    def seed(self) -> int:
        """Random seed of the tower."""
        return self.inputs.seed if self.config.seed is None else self.config.seed

    @property
    def miner(self) -> RankerStage | None:
        """The ranker whose scores sample the items that compete with a target; None if there is none."""
        return self.before[self.config.miner] if self.config.miner else None

    def sample(self, rows: list[RankingExample], ids: Sequence[str], split: str) -> list[RankingExample]:
        """Return the rows of a split with sampled items, out of `ids`, that compete with the targets.

        Items of the user's training log are never sampled.
        """
        from prefrec.training.negatives import resample_negatives  # here, because PEFT takes seconds to import

        by_softmax = partial(softmax_sample, self._miner_for(split), ids, 1.0)
        size = 1 + self.config.num_negatives
        return resample_negatives(rows, self.inputs.data, "ranker", seed=self.seed, size=size, sampler=by_softmax)

    def _miner_for(self, split: str) -> Ranker:
        """Load the ranker that samples for the examples of a split; without a miner all items have equal scores."""
        if self.miner is None:
            return PopularityRanker({}, "uniform")
        if split == "train" and not self.miner.counts_others:
            say(f"{self.name}: {self.miner.name} learnt from these targets itself, and they are likely for it")
        return self.miner.load_unlearnt(split, self.inputs.batch_size)

    def titles(self) -> Tensor:
        """Return the title vectors [I, T] of all items."""
        catalogue = self.inputs.data.catalogue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.config.vectors == RANDOM:
                return torch.randn(len(catalogue), RANDOM_WIDTH)
            shown = shown_items(self.inputs.model, catalogue)
            texts = [shown.get(title, title) for title in catalogue.titles.values()]
            return torch.from_numpy(text_vectors(self.config.vectors, texts, self.inputs.model.dtype))
