"""GRU4Rec, Caser and SASRec in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.data import PreparedData
from prefrec.errors import ModelError
from prefrec.files import content_digest, read_json
from prefrec.pipeline.entry import Entry, Ingredients, due
from prefrec.pipeline.kinds import SEQUENTIAL, RankerKind
from prefrec.processes import is_first
from prefrec.runs.stage import stage, stage_key
from prefrec_systems.sequential.config import SequentialConfig
from prefrec_systems.sequential.ranker import SequentialRanker, load_sequential
from prefrec_systems.sequential.train import train_sequential


def sequential_stage(
    made_of: Ingredients, config: SequentialConfig, folder: Path, before: Mapping[str, Entry]
) -> Entry:
    """Return a sequential recommender as an entry, trained in `folder`."""
    settings = config.model_dump(exclude={"negatives"} if config.negatives is None else None)
    key = stage_key(data=made_of.data_key, seed=made_of.seed, sequential=settings)
    if due(folder, key, config.model):
        with stage(folder, key, SEQUENTIAL, config.model_dump()):
            if is_first():
                train_sequential(made_of.data, config, folder, seed=made_of.seed)
    return _entry(config.model, key, folder, made_of.data)


def open_sequential(folder: Path, data: PreparedData) -> Entry:
    """Return the sequential recommender in a folder, which may come from outside a run.

    Raises:
        ModelError: the folder holds no sequential recommender.
    """
    about = read_json(folder / "model.json")
    model = about.get("config", {}).get("model")
    if model is None:
        raise ModelError(f"{folder} holds no sequential recommender; `prefrec sequential DATA {folder}` trains one")
    return _entry(model, stage_key(files=content_digest(folder)), folder, data)


def _entry(name: str, key: str, folder: Path, data: PreparedData) -> Entry:
    def load(batch_size: int) -> SequentialRanker:
        return load_sequential(folder, data.catalogue, name)

    return Entry(name, key, load, load, folder)


KIND = RankerKind(SequentialConfig, sequential_stage, open_folder=open_sequential)
