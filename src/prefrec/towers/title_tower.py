"""Title tower: a next-item model of frozen title vectors and learnt item vectors.

An item's vector is a projection of its title vector plus a vector of its own:

    v_i = W·t_i + keep·e_i        score_i = s · v_i · P (Σ_a w_a v_a / Σ_a w_a) + keep·b_i

v_a is the vector of the history item of age a, with a learnt weight w_a for each age. `keep` is 0 for a random
fraction of the items in each training step, so that the model learns to rank items by their titles. An item without
training interactions has e_i = 0 and b_i = 0: it is ranked by its title alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError, ModelError
from prefrec.extras import need
from prefrec.files import read_whole, write_text, write_whole
from prefrec.lm.names import check_name
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.matrices import score_by_rows
from prefrec.rankers.words import TFIDF
from prefrec.towers.network import SCALE, Floats, TitleTower

RANDOM = "random"
"""Name of random vectors in place of an encoder's, as a control."""
TOWER_FILES = ("tower.safetensors", "tower.json")
"""Files that `load_tower` reads."""


class TitleTowerConfig(RankerConfig):
    """A next-item model of frozen title vectors and learnt item vectors; it trains in seconds to minutes."""

    kind: Literal["title-tower"] = "title-tower"
    name: str = Field("title-tower", description="Name in tables, and of the ranker's folder.")
    vectors: str = Field(
        TFIDF,
        description="Where title vectors come from: tfidf (words of the titles), all-minilm-l6-v2 or the name of "
        "another encoder (they need the extra lm), or random (a control).",
    )
    width: int = Field(64, ge=1, description="Width of item vectors.")
    last: int = Field(10, ge=1, description="Read the last N items of a history.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout on the vectors of history items.")
    vector_dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Probability of dropping an item's own vector in a training step (title-only dropout).",
    )
    epochs: int = Field(6, ge=1, description="Most epochs to train.")
    patience: int = Field(3, ge=1, description="Stop after N epochs without a better validation NDCG@10.")
    batch_size: int = Field(512, ge=1, description="Targets per optimiser step.")
    learning_rate: float = Field(
        4e-3, gt=0, le=1, description="Initial learning rate of AdamW. It falls linearly to 0 over the epochs."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")

    def decisive(self) -> dict[str, Any]:
        """Return the settings that affect results, without the title vectors, whose content counts."""
        return self.model_dump(exclude={"kind", "name", "vectors"})

    def check_data(self, data: PreparedData) -> None:
        if not data.validation:
            raise ConfigError(
                f"rankers.{self.name}: validation examples choose the number of epochs, and the data have none: "
                "remove this entry, or prepare data with validation examples"
            )
        if self.vectors not in (RANDOM, TFIDF):
            need("lm", f"rankers.{self.name}.vectors: {self.vectors}")
            check_name(self.vectors)  # before other stages have trained for minutes


def whitened(vectors: Floats, width: int) -> Floats:
    """Return vectors [I, T'] of uncorrelated dimensions of equal variance, those of most variance in `vectors` first.

    Dimensions without variance are dropped. The first `width` dimensions have a mean norm of 1.
    """
    spread = vectors.astype(np.float64)
    spread -= spread.mean(axis=0)
    variances, axes = np.linalg.eigh(spread.T @ spread / max(1, len(spread)))
    kept = np.arange(len(variances))[::-1][: int((variances > 1e-9 * variances.max()).sum())]
    white = spread @ (axes[:, kept] / np.sqrt(variances[kept]))
    length = np.linalg.norm(white[:, :width], axis=1).mean()
    return (white / max(float(length), 1e-12)).astype(np.float32)[first_equal(vectors)]


def first_equal(rows: Floats) -> NDArray[np.int64]:
    """Return the index [I] of the first row that equals each of the rows [I, D]."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), n) for n, row in enumerate(rows)], dtype=np.int64)


class TitleTowerRanker:
    """A trained title tower as a ranker.

    Items outside the catalogue are skipped in histories, and score 0. After an empty history, items score their bias.

    Args:
        name: name in tables.
        ids: [I] ids of the catalogue's items.
        vectors: [I, D] their vectors.
        bias: [I] their biases.
        predict: [D, D] s · P.
        weights: [L] weight of each age, the newest item's first.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        vectors: NDArray[np.floating],
        bias: NDArray[np.floating],
        predict: NDArray[np.floating],
        weights: NDArray[np.floating],
    ) -> None:
        self.name = name
        self.index = {item: code for code, item in enumerate(ids)}
        self.vectors, self.bias, self.predict, self.weights = vectors, bias, predict, weights

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        states = (self._history_weights(examples) @ self.vectors) @ self.predict.T
        return score_by_rows(states, lambda block: block @ self.vectors.T + self.bias, examples, self.index)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        """Return the term [L] of each history item in the score of `item`; its bias is the rest."""
        terms = np.zeros(len(history))
        if item in self.index:
            state = self.predict.T @ self.vectors[self.index[item]]
            pairs = [
                (n, w)
                for n, w in zip(range(len(history))[::-1], self.weights, strict=False)
                if history[n] in self.index
            ]
            total = sum(w for _, w in pairs)
            for n, w in pairs:
                terms[n] = w / total * self.vectors[self.index[history[n]]] @ state
        return terms

    def item_vectors(self) -> tuple[list[str], NDArray[np.floating]]:
        """Return ids [I] and vectors [I, D] of items."""
        return [*self.index], self.vectors

    def _history_weights(self, examples: Sequence[RankingExample]) -> sparse.csr_array:
        """Return weights [B, I] of the items in each history, which sum to 1."""
        columns, values, ends = list[int](), list[float](), [0]
        for e in examples:
            codes = [self.index.get(item, -1) for item in reversed(e.history[-len(self.weights) :])]
            pairs = [(code, w) for code, w in zip(codes, self.weights, strict=False) if code >= 0]
            total = sum(w for _, w in pairs)
            columns += [code for code, _ in pairs]
            values += [w / total for _, w in pairs]
            ends.append(len(columns))
        shape = (len(examples), len(self.index))
        return sparse.csr_array((np.array(values), np.array(columns, dtype=np.int64), ends), shape=shape)


def as_ranker(
    tower: TitleTower, name: str, ids: Sequence[str], titles: Floats, learnt: NDArray[np.int64]
) -> TitleTowerRanker:
    """Return a tower as a ranker of all items.

    Args:
        tower: the weights.
        name: of the ranker.
        ids: [I] item ids.
        titles: [I, T] title vectors of all items.
        learnt: [n] indices of the tower's items among them.
    """
    weights = tower.weights
    bias = np.zeros(len(ids), np.float32)
    bias[learnt] = weights["bias"]
    # On some processors a product of matrices rounds equal rows in different ways. Equal titles must tie.
    vectors = (titles @ weights["project"].T)[first_equal(titles)]
    vectors[learnt] += weights["own"]
    arrays = (vectors, bias, SCALE * weights["predict"], np.exp(weights["log_weights"]))
    return TitleTowerRanker(name, ids, *(array.astype(np.float64) for array in arrays))


def save_tower(ranker: TitleTowerRanker, about: dict[str, Any], folder: Path) -> None:
    """Write a ranker and what is known `about` its training to `TOWER_FILES` in `folder`."""
    arrays = {name: getattr(ranker, name) for name in ("vectors", "bias", "predict", "weights")}
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    weights, description = (folder / name for name in TOWER_FILES)
    write_whole(weights, lambda p: save_file(tensors, p))
    write_text(description, json.dumps({**about, "items": [*ranker.index]}, ensure_ascii=False))


def load_tower(folder: Path, name: str) -> TitleTowerRanker:
    """Return the ranker that `save_tower` wrote to `folder`; raise ModelError if it is missing or damaged."""
    try:
        ids = json.loads(read_whole(folder / TOWER_FILES[1]))["items"]
        state = load_file(folder / TOWER_FILES[0])
        arrays = [state[key].astype(np.float64) for key in ("vectors", "bias", "predict", "weights")]
        width = arrays[0].shape[1]
        if arrays[0].shape[0] != len(ids) or arrays[1].shape != (len(ids),) or arrays[2].shape != (width, width):
            raise ValueError("the weights do not fit the items")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder} has no title tower, or a damaged one: {e}; train it again") from e
    return TitleTowerRanker(name, ids, *arrays)


def chosen_epochs(folder: Path) -> int:
    """Return the number of epochs that validation examples chose for the tower in a folder."""
    return int(json.loads(read_whole(folder / TOWER_FILES[1]))["best_epoch"]) + 1
