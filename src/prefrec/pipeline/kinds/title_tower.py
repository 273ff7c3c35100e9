"""Title towers in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError
from prefrec.lm.models import base_digest, check_name
from prefrec.pipeline.encoders import TFIDF, shown_items, text_vectors
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.baselines import PopularityRanker
from prefrec.rankers.softmax import softmax_sample
from prefrec.rankers.title_tower import TitleTowerConfig, chosen_epochs, load_tower
from prefrec.rankers.tower_training import Draw, train_tower
from prefrec.runs.stage import stage_key

RANDOM, RANDOM_WIDTH = "random", 384
"""Name of random vectors in place of an encoder's, and their width, which is that of MiniLM."""


def tower_entry(inputs: RunInputs, config: TitleTowerConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return a title tower as an entry, trained in `folder`."""
    miner = before[config.miner] if config.miner else None
    named = config.vectors if config.vectors in (RANDOM, TFIDF) else base_digest(config.vectors)
    shown = shown_items(inputs.model, inputs.data.catalogue)
    key = stage_key(
        data=inputs.data_key,
        seed=_seed(inputs, config),
        tower=config.decisive(),
        vectors=named,
        dtype=inputs.model.dtype,
        **({"item_text": stage_key(texts=shown)} if shown else {}),
        **({"miner": miner.key} if miner else {}),
    )
    return _trained(inputs, config, folder, key, lambda: None, miner)


def _refit_entry(
    inputs: RunInputs, config: TitleTowerConfig, folder: Path, before: Mapping[str, Entry], first: Entry
) -> Entry:
    """Return the tower trained again on the longer log, for as many epochs as validation examples chose."""
    weights = first.weights
    assert weights is not None
    key = stage_key(data=inputs.data_key, refit=first.key)
    miner = before[config.miner] if config.miner else None
    return _trained(inputs, config, folder, key, lambda: chosen_epochs(weights), miner)


def _trained(
    inputs: RunInputs,
    config: TitleTowerConfig,
    folder: Path,
    key: str,
    epochs: Callable[[], int | None],
    miner: Entry | None,
) -> Entry:
    def make() -> None:
        if is_first():
            titles, draw = tower_titles(inputs, config), sampler(inputs, config, miner)
            train_tower(inputs.data, titles, config, folder, seed=_seed(inputs, config), epochs=epochs(), draw=draw)

    def load(batch_size: int) -> Ranker:
        return load_tower(folder, config.name)

    return Entry(config.name, key, load, load, folder, make=make)


def sampler(inputs: RunInputs, config: TitleTowerConfig, miner: Entry | None) -> Draw | None:
    """Return the function that samples items to compete with targets; None if all items do.

    Items of the user's training log are never sampled.
    """
    if config.negatives_from == "all":
        return None

    def draw(rows: list[RankingExample], ids: Sequence[str], split: str) -> list[RankingExample]:
        from prefrec.training.negatives import resample_negatives  # here, because PEFT takes seconds to import

        ranker: Ranker = PopularityRanker({}, "uniform")  # equal scores
        if miner and split == "train":
            if miner.training is None:
                say(f"{config.name}: {miner.name} learnt from these targets itself, and they are likely for it")
            ranker = miner.load_for_training(inputs.batch_size)
        elif miner:
            held_out = miner.on(split)
            ranker = (held_out.load_full or held_out.load)(inputs.batch_size)
        size, seed = 1 + config.num_negatives, _seed(inputs, config)
        by_softmax = partial(softmax_sample, ranker, ids, 1.0)
        return resample_negatives(rows, inputs.data, "ranker", seed=seed, size=size, sampler=by_softmax)

    return draw


def _seed(inputs: RunInputs, config: TitleTowerConfig) -> int:
    return inputs.seed if config.seed is None else config.seed


def tower_titles(inputs: RunInputs, config: TitleTowerConfig) -> Tensor:
    """Return the title vectors [I, T] of all items."""
    catalogue = inputs.data.catalogue
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(inputs, config))  # also for the SVD of TF-IDF, which is randomised
        if config.vectors == RANDOM:
            return torch.randn(len(catalogue), RANDOM_WIDTH)
        shown = shown_items(inputs.model, catalogue)
        texts = [shown.get(title, title) for title in catalogue.titles.values()]
        return text_vectors(config.vectors, texts, inputs.model.dtype)


def _check_data(config: TitleTowerConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: validation examples choose the number of epochs, and the data have none: remove "
            "this entry, or prepare data with validation examples"
        )
    if config.vectors not in (RANDOM, TFIDF):
        check_name(config.vectors)  # before other stages have trained for minutes


def _needs(config: TitleTowerConfig) -> dict[str, list[str]]:
    return {"miner": [config.miner]} if config.miner else {}


KIND = RankerKind(TitleTowerConfig, tower_entry, _needs, served=True, check_data=_check_data, refit=_refit_entry)
