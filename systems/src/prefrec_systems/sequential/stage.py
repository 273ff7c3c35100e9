"""GRU4Rec, Caser and SASRec in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec_systems.sequential.config import SequentialConfig
from prefrec_systems.sequential.ranker import chosen_settings, load_sequential
from prefrec_systems.sequential.train import train_sequential


def sequential_entry(inputs: RunInputs, config: SequentialConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return a sequential recommender as an entry, trained in `folder`."""

    def make() -> None:
        if is_first():
            train_sequential(inputs.data, config, folder, seed=inputs.seed)

    def load(batch_size: int) -> Ranker:
        return load_sequential(folder, inputs.data.catalogue, config.name)

    key = stage_key(data=inputs.data_key, seed=inputs.seed, sequential=config.decisive())
    return Entry(config.name, key, load, load, folder, make=make)


def _refit_entry(
    inputs: RunInputs, config: SequentialConfig, folder: Path, before: Mapping[str, Entry], first: Entry
) -> Entry:
    """Return the recommender trained again on the longer log, for the epochs and with the cell that were chosen."""

    def make() -> None:
        if is_first():
            assert first.weights is not None
            chosen, epochs = chosen_settings(first.weights)
            train_sequential(inputs.data, chosen, folder, seed=inputs.seed, epochs=epochs)

    def load(batch_size: int) -> Ranker:
        return load_sequential(folder, inputs.data.catalogue, config.name)

    key = stage_key(data=inputs.data_key, refit=first.key)
    return Entry(config.name, key, load, load, folder, make=make)


KIND = RankerKind(SequentialConfig, sequential_entry, served=True, refit=_refit_entry)
