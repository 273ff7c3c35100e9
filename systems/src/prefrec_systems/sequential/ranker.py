"""A trained GRU4Rec, Caser or SASRec as a ranker: hopwise's model, our weights, no hopwise configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.rankers.rows import pad_codes
from prefrec_systems.sequential.benchmark import UNKNOWN_USER, Vocabulary
from prefrec_systems.sequential.config import FIXED

_ROWS_AT_A_TIME = 512


class SequentialRanker:
    """Scores items by a sequential recommender: the inner product of a history's vector and an item's.

    - Items unknown to training share one score, 1 below the lowest known item of the row. Histories leave them out.
    - A row without known items in its history scores 0 for every known item: a tie, which evaluation breaks at
    random.
    - Users unknown to training have the zero vector in models with users (Caser).

    Args:
        model: hopwise's, in evaluation mode, with embeddings in the order of the vocabulary's tokens.
        catalogue: gives the columns of `full_scores`.

    Raises:
        DataError: the model knows items that the catalogue lacks.
    """

    def __init__(self, name: str, model: Any, vocabulary: Vocabulary, catalogue: Catalogue) -> None:
        self.name = name
        self.model = model
        self.vocabulary = vocabulary
        tokens = vocabulary.item_tokens
        if foreign := sorted(tokens.keys() - set(catalogue.ids)):
            raise DataError(
                f"{name} was trained on other data: {len(foreign)} of its {len(tokens)} items are not in the "
                f"catalogue, {foreign[0]!r} among them"
            )
        self._columns = {item: token - 1 for item, token in tokens.items()}
        self._catalogue = np.array([self._columns.get(item, len(tokens)) for item in catalogue.ids])

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates, -inf in empty places."""
        codes = pad_codes([e.candidates for e in examples], self._columns)
        scores = np.full(codes.shape, -np.inf)
        for rows, known in self._scores(examples):
            scores[rows] = np.take_along_axis(known, codes[rows], axis=1)
        return np.where(codes < 0, -np.inf, scores)

    def full_scores(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, n_items] of the whole catalogue, in its order."""
        scores = np.empty((len(examples), len(self._catalogue)))
        for rows, known in self._scores(examples):
            scores[rows] = known[:, self._catalogue]
        return scores

    def _scores(self, examples: Sequence[RankingExample]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield slices of the rows with scores [b, known items + 1]; the last column is for every unknown item."""
        for start in range(0, len(examples), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            known = self._known_scores(examples[rows])
            yield rows, np.hstack([known, known.min(axis=1, keepdims=True) - 1.0])

    @torch.inference_mode()
    def _known_scores(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        histories = [self.vocabulary.known(e.history) for e in examples]
        users = [self.vocabulary.user_tokens.get(e.user_id, UNKNOWN_USER) for e in examples]
        items = torch.zeros(len(examples), self.vocabulary.history_length, dtype=torch.long)
        for row, history in zip(items, histories, strict=True):
            row[: len(history)] = torch.tensor(history, dtype=torch.long)
        lengths = torch.tensor([len(h) for h in histories])
        batch = {"user_id": torch.tensor(users), "item_id_list": items, "item_length": lengths.clamp(min=1)}
        scores = self.model.full_sort_predict(batch)[:, 1:].double().numpy()  # column 0 is padding
        return np.where(lengths.numpy()[:, None] > 0, scores, 0.0)


def load_sequential(folder: Path, catalogue: Catalogue, name: str | None = None) -> SequentialRanker:
    """Return the ranker that `train_sequential` left in `folder`; without `name` it has that of the model.

    Raises:
        ConfigError: hopwise, or a module that it needs, is not installed.
        ModelError: the model is missing or damaged.
        DataError: it was trained on items that the catalogue lacks.
    """
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        vocabulary = Vocabulary(about["items"], about["users"], about["history_length"])
        model = build_model(about["model"], vocabulary, about["settings"])
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ModelError(f"{folder} holds no sequential recommender, or a damaged one: {e}; train it again") from e
    return SequentialRanker(name or about["model"], model.eval(), vocabulary, catalogue)


def build_model(name: str, vocabulary: Vocabulary, settings: dict[str, Any]) -> Any:
    """Return hopwise's model of this name with random weights, made without its `Config` and `Dataset`."""
    config = {
        **FIXED,
        **settings,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": vocabulary.history_length,
        "device": torch.device("cpu"),
    }
    sizes = SimpleNamespace(num=lambda field: len(vocabulary.items) + 1, user_num=len(vocabulary.users) + 1)
    with torch.random.fork_rng(devices=[]):
        return getattr(require_hopwise(), name)(config, sizes)


def require_hopwise() -> Any:
    """Return hopwise's module of sequential models.

    Raises:
        ConfigError: hopwise, or a module that it needs, is not installed.
    """
    anomalies = torch.is_anomaly_enabled()
    try:
        return import_module("hopwise.model.sequential_recommender")
    except ModuleNotFoundError as e:
        raise missing_module(e.name) from e
    finally:
        # One of hopwise's modules switches the detection on, which would slow down every training of this process.
        torch.autograd.set_detect_anomaly(anomalies)


def missing_module(name: str | None) -> ConfigError:
    """Return the error that says what to install."""
    return ConfigError(
        f"GRU4Rec, Caser and SASRec need hopwise, and Python finds no module {name!r}: run `pip install hopwise`"
    )
