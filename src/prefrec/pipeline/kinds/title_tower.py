"""Title towers in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.lm.models import base_digest, check_name
from prefrec.pipeline.encoders import TFIDF, shown_items, text_vectors
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.title_tower import TitleTowerConfig, chosen_epochs, load_tower
from prefrec.rankers.tower_training import train_tower
from prefrec.runs.stage import stage_key

RANDOM, RANDOM_WIDTH = "random", 384
"""Name of random vectors in place of an encoder's, and their width, which is that of MiniLM."""


def tower_entry(inputs: RunInputs, config: TitleTowerConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return a title tower as an entry, trained in `folder`."""
    named = config.vectors if config.vectors in (RANDOM, TFIDF) else base_digest(config.vectors)
    shown = shown_items(inputs.model, inputs.data.catalogue)
    key = stage_key(
        data=inputs.data_key,
        seed=inputs.seed,
        tower=config.decisive(),
        vectors=named,
        dtype=inputs.model.dtype,
        **({"item_text": stage_key(texts=shown)} if shown else {}),
    )
    return _trained(inputs, config, folder, key, lambda: None)


def _refit_entry(
    inputs: RunInputs, config: TitleTowerConfig, folder: Path, before: Mapping[str, Entry], first: Entry
) -> Entry:
    """Return the tower trained again on the longer log, for as many epochs as validation examples chose."""
    weights = first.weights
    assert weights is not None
    key = stage_key(data=inputs.data_key, refit=first.key)
    return _trained(inputs, config, folder, key, lambda: chosen_epochs(weights))


def _trained(
    inputs: RunInputs, config: TitleTowerConfig, folder: Path, key: str, epochs: Callable[[], int | None]
) -> Entry:
    def make() -> None:
        if is_first():
            titles = tower_titles(inputs, config)
            train_tower(inputs.data, titles, config, folder, seed=inputs.seed, epochs=epochs())

    def load(batch_size: int) -> Ranker:
        return load_tower(folder, config.name)

    return Entry(config.name, key, load, load, folder, make=make)


def tower_titles(inputs: RunInputs, config: TitleTowerConfig) -> Tensor:
    """Return the title vectors [I, T] of all items."""
    catalogue = inputs.data.catalogue
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.seed)  # also for the SVD of TF-IDF, which is randomised
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


KIND = RankerKind(TitleTowerConfig, tower_entry, served=True, check_data=_check_data, refit=_refit_entry)
