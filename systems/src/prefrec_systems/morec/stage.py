"""MoRec in a recipe: training sequences and titles in, weights and title vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.lm.models import base_digest
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec_systems.morec import MoRecConfig, load_morec, train_morec
from prefrec_systems.sequential.ranker import chosen_epochs


def morec_entry(inputs: RunInputs, config: MoRecConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return MoRec as an entry, trained in `folder`."""
    settings = config.model_dump() | {"encoder": base_digest(config.encoder)}
    key = stage_key(data=inputs.data_key, seed=inputs.seed, morec=settings)

    def make() -> None:
        if is_first():
            train_morec(inputs.data, config, folder, seed=inputs.seed)

    def load(batch_size: int) -> Ranker:
        return load_morec(folder, inputs.data.catalogue, config.name)

    return Entry(config.name, key, load, load, folder, make=make)


def _refit_entry(
    inputs: RunInputs, config: MoRecConfig, folder: Path, before: Mapping[str, Entry], first: Entry
) -> Entry:
    """Return MoRec trained again on the longer log, for as many epochs as validation examples chose."""

    def make() -> None:
        if is_first():
            assert first.weights is not None
            train_morec(inputs.data, config, folder, seed=inputs.seed, epochs=chosen_epochs(first.weights))

    def load(batch_size: int) -> Ranker:
        return load_morec(folder, inputs.data.catalogue, config.name)

    key = stage_key(data=inputs.data_key, refit=first.key)
    return Entry(config.name, key, load, load, folder, make=make)


KIND = RankerKind(MoRecConfig, morec_entry, refit=_refit_entry)
