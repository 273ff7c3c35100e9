"""The stage of MoRec: training sequences and titles in, weights and title vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.pipeline.ingredients import Ingredients, due
from prefrec.pipeline.score import Entry, RankerEntry
from prefrec.processes import is_first
from prefrec.rankers.base import Ranker
from prefrec.rankers.morec import MODEL_FILES, MoRecConfig, load_morec, train_morec
from prefrec.runs.stage import file_facts, stage, stage_key


def morec_stage(made_of: Ingredients, config: MoRecConfig, folder: Path, before: Mapping[str, Entry]) -> RankerEntry:
    """Train MoRec in `folder`, or find it trained there."""
    facts = file_facts([Path(config.encoder).expanduser()])
    key = stage_key(data=made_of.data_key, seed=made_of.seed, morec=config.model_dump(), encoder=facts)
    if due(folder, key, config.name, MODEL_FILES):
        with stage(folder, key, config.kind, config.model_dump()):
            if is_first():
                train_morec(made_of.data, config, folder, seed=made_of.seed)

    def load() -> Ranker:
        return load_morec(folder, made_of.data.catalogue, config.name)

    return RankerEntry(config.name, key, load, load_full=load)
