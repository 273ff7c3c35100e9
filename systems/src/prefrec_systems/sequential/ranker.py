"""A trained next-item model as a ranker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from prefrec.data import Catalogue, Query
from prefrec.errors import DataError, ModelError
from prefrec.files import read_whole
from prefrec.rankers.matrices import candidate_codes, pad_codes
from prefrec_systems.sequential.config import SequentialConfig
from prefrec_systems.sequential.models import SequentialModel, with_weights
from prefrec_systems.sequential.train import last_scores

_ROWS_AT_A_TIME = 512


class SequentialRanker:
    """Scores items by the inner product of a history's state and an item's vector.

    - Candidates that the model does not know get the mean score of the known ones. In histories they are skipped.
    - After a history without known items, all known items score 0: a tie.

    Args:
        name: name in tables.
        model: a `NextItemModel` in evaluation mode.
        ids: [I] ids of the items that it knows, in the order of its item vectors.
        history_length: most items of a history.
        catalogue: all items, including those.

    Raises:
        DataError: the model knows items that the catalogue lacks.
    """

    def __init__(self, name: str, model: Any, ids: Sequence[str], history_length: int, catalogue: Catalogue) -> None:
        if foreign := sorted(set(ids) - set(catalogue.ids)):
            raise DataError(
                f"{name} was trained on other data: {len(foreign)} of its {len(ids)} items are not in the catalogue, "
                f"such as {foreign[0]!r}"
            )
        self.name = name
        self.model = model
        self.ids = tuple(ids)
        self.history_length = history_length
        self._codes = {item: n for n, item in enumerate(ids)}
        with torch.inference_mode():
            self.vectors = model.all_items()
        """Item vectors [I, d] in the order of `ids`."""

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        codes = candidate_codes(queries, self._codes)
        codes = np.broadcast_to(codes, (len(queries), codes.shape[1]))
        histories = [[i for i in q.history if i in self._codes][-self.history_length :] for q in queries]
        read = pad_codes(histories, self._codes)
        lengths = np.array([len(h) for h in histories])
        scores = np.full(codes.shape, -np.inf)
        for start in range(0, len(queries), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            scores[rows] = _of_columns(last_scores(self.model, self.vectors, read[rows], lengths[rows]), codes[rows])
        return np.where(codes < 0, -np.inf, scores)


def _of_columns(known: NDArray[np.float64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scores [b, I] at columns [b, C]; columns outside 0 … I − 1 get the mean of the others."""
    inside = (columns >= 0) & (columns < known.shape[1])
    scores = np.where(inside, np.take_along_axis(known, np.where(inside, columns, 0), axis=1), 0.0)
    mean = scores.sum(axis=1, keepdims=True) / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    return np.where(inside, scores, mean)


def chosen_epochs(folder: Path) -> int:
    """Return the number of epochs that validation examples chose for the model in a folder."""
    return int(json.loads(read_whole(folder / "model.json"))["best_epoch"]) + 1


def chosen_settings(folder: Path) -> tuple[SequentialConfig, int]:
    """Return the cell of the grid and the number of epochs that validation examples chose for a model."""
    about = json.loads(read_whole(folder / "model.json"))
    return SequentialConfig.model_validate(about["config"]), chosen_epochs(folder)


def load_sequential(folder: Path, catalogue: Catalogue, name: str | None = None) -> SequentialRanker:
    """Return the ranker that `train_sequential` wrote to `folder`; its default name is that of the model.

    Raises:
        ModelError: the model is missing or damaged.
        DataError: it was trained on items that the catalogue lacks.
    """
    try:
        about = json.loads(read_whole(folder / "model.json"))
        config = SequentialConfig.model_validate(about["config"])
        ids = about["items"]
        length = about["history_length"]
        layers = config.window if config.model == "Caser" else config.n_layers
        weights = load_file(folder / "model.safetensors")
        model = with_weights(lambda: SequentialModel(config, len(ids), length), layers, weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder} has no sequential recommender, or a damaged one: {e}; train it again") from e
    return SequentialRanker(name or config.name, model.eval(), ids, length, catalogue)
