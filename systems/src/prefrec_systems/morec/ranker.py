"""A trained MoRec as a ranker, which scores all items with a title, with or without training interactions."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from prefrec.data import Catalogue
from prefrec.errors import ModelError
from prefrec.files import read_whole
from prefrec.lm.models import default_device
from prefrec.towers.title_encoder import load_encoder
from prefrec_systems.morec.config import MoRecConfig
from prefrec_systems.morec.model import MoRecModel, OnTitles
from prefrec_systems.morec.titles import read_titles, title_vectors
from prefrec_systems.sequential.models import with_weights
from prefrec_systems.sequential.ranker import SequentialRanker

MODEL_FILES = ("model.safetensors", "titles.safetensors", "model.json")
"""Files that `load_morec` reads, besides the folder `ENCODER` of a trained encoder."""
ENCODER = "encoder"


def load_morec(folder: Path, catalogue: Catalogue, name: str | None = None) -> SequentialRanker:
    """Return a trained MoRec.

    The encoder is loaded only if the catalogue has titles that were not in training.

    Args:
        folder: folder written by `train_morec`.
        catalogue: items to rank.
        name: name in tables. Default: that of the configuration.

    Raises:
        ModelError: the model is missing or damaged.
    """
    try:
        about = json.loads(read_whole(folder / "model.json"))
        config = MoRecConfig.model_validate(about["config"])
        length = about["history_length"]
        weights = load_file(folder / "model.safetensors")
        model = with_weights(lambda: MoRecModel(config, about["width"], length), config.n_layers, weights)
        known = read_titles(folder / "titles.safetensors")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder} has no MoRec model, or a damaged one: {e}; train it again") from e
    encoder = str(folder / ENCODER) if config.tune else config.encoder
    titles = catalogue.titles_of(catalogue.ids)
    vectors = title_vectors(titles, known, lambda: load_encoder(encoder, config.max_title_tokens))
    on_titles = OnTitles(model, vectors).to(default_device()).eval()
    return SequentialRanker(name or config.name, on_titles, catalogue.ids, length, catalogue)
