"""Title tower: a next-item model of frozen title vectors and learnt item vectors.

An item's vector is a projection of its title vector plus a vector of its own:

    v_i = W·t_i + keep·e_i

`keep` is 0 for a random fraction of the items in each training step, so that the model learns to rank items by their
titles. An item without training interactions has e_i = 0 and b_i = 0: it is ranked by its title alone.

The answer to a history is a mixture: what follows each of its latest items, and what follows their mean
(`prefrec.towers.network`). So one item of a history can name its accessory whatever else was bought, as counts of
co-occurrence do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from prefrec.data import PreparedData, Query
from prefrec.errors import ConfigError, ModelError
from prefrec.extras import need
from prefrec.files import read_whole, write_text, write_whole
from prefrec.lm.names import check_name
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.matrices import blocks, score_by_rows
from prefrec.rankers.words import TFIDF
from prefrec.towers.network import SCALE, Floats, Indices, TitleTower, history_shares

RANDOM = "random"
"""Name of random vectors in place of an encoder's, as a control."""
FORM = "mixture"
"""Form of the model, so that a tower of another form is trained again."""
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
    epochs: int = Field(8, ge=1, description="Most epochs to train.")
    patience: int = Field(3, ge=1, description="Stop after N epochs without a better validation NDCG@10.")
    batch_size: int = Field(512, ge=1, description="Targets per optimiser step.")
    learning_rate: float = Field(
        4e-3, gt=0, le=1, description="Initial learning rate of AdamW. It falls linearly to 0 over the epochs."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")

    def decisive(self) -> dict[str, Any]:
        """Return what affects results, without the title vectors, whose content counts."""
        return {"form": FORM, **self.model_dump(exclude={"kind", "name", "vectors"})}

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


class Mixture(NamedTuple):
    """The arrays of a trained tower, for all I items of a catalogue; the names are those of `TitleTower`.

    Attributes:
        vectors: [I, D] item vectors.
        bias: [I] of the items.
        predict: [D, D] S · P.
        predict_mean: [D, D] S · P_m.
        log_weights: [L] of an item's age.
        item_weights: [I] of the item; 0 for items that were not learnt.
        mean_weights: [L] of the mean, by the length of the history.
        mean_ages: [L] log w of an item's age in the mean.
        norms: [I] log Σ_c exp(S v_i·P v_c + b_c), by which the scores after item i become log-probabilities.
    """

    vectors: Floats
    bias: Floats
    predict: Floats
    predict_mean: Floats
    log_weights: Floats
    item_weights: Floats
    mean_weights: Floats
    mean_ages: Floats
    norms: Floats

    def check(self, items: int) -> None:
        """Raise ValueError if the shapes do not fit this number of items or each other."""
        width, last = self.vectors.shape[1], len(self.log_weights)
        fitting = ((items, width), (items,), *[(width, width)] * 2, (last,), (items,), *[(last,)] * 2, (items,))
        if tuple(array.shape for array in self) != fitting:
            raise ValueError("the weights do not fit the items")


class TitleTowerRanker:
    """A trained title tower as a ranker.

    A score is log(I · p), with the probability p of the item among all I items: 0 for an item that is as probable as
    a random one. Items outside the catalogue are skipped in histories, and score 0. After an empty history, items are
    in the order of their biases.

    Args:
        name: name in tables.
        ids: [I] ids of the catalogue's items.
        mixture: the weights.
    """

    def __init__(self, name: str, ids: Sequence[str], mixture: Mixture) -> None:
        self.name, self.mixture = name, mixture
        self.index = {item: code for code, item in enumerate(ids)}

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        return score_by_rows(self._histories(queries), self._of_items, queries, self.index)

    def item_vectors(self) -> tuple[list[str], NDArray[np.floating]]:
        """Return ids [I] and vectors [I, D] of items."""
        return [*self.index], self.mixture.vectors

    def _histories(self, queries: Sequence[Query]) -> Indices:
        """Return the codes [B, L] of the latest items, newest first; −1 in empty columns."""
        last = len(self.mixture.log_weights)
        out = np.full((len(queries), last), -1, dtype=np.int64)
        for row, q in zip(out, queries, strict=True):
            known = [self.index[item] for item in q.history[-last:] if item in self.index]
            row[: len(known)] = known[::-1]
        return out

    def _of_items(self, histories: Indices) -> Floats:
        """Return the scores [B, I] of all items after histories [B, L]."""
        out = np.empty((len(histories), len(self.index)), np.float32)
        for rows in blocks(len(histories), len(self.index) * (histories.shape[1] + 1)):
            self._write_probabilities(histories[rows], out[rows])
        np.maximum(out, np.finfo(np.float32).tiny, out=out)
        np.log(out, out=out)
        out += np.float32(np.log(len(self.index)))
        return out

    def _write_probabilities(self, histories: Indices, out: Floats) -> None:
        """Write the probabilities [B, I] of all items after histories [B, L] to `out`."""
        mixture, is_item = self.mixture, histories >= 0
        _, shares, mean_shares = history_shares(histories, mixture._asdict())
        # The probabilities after an item are the same in all histories that have it.
        items, places = np.unique(histories[is_item], return_inverse=True)
        after = (mixture.vectors[items] @ mixture.predict.T) @ mixture.vectors.T
        after += mixture.bias
        after -= mixture.norms[items, None]
        np.exp(after, out=after)
        ends = np.concatenate([[0], np.cumsum(is_item.sum(axis=1))])
        shape = (len(histories), len(items))
        np.copyto(out, sparse.csr_array((shares[:, :-1][is_item], places, ends), shape=shape) @ after)
        means = np.einsum("bl,bld->bd", mean_shares, mixture.vectors[np.maximum(histories, 0)])
        by_mean = (means @ mixture.predict_mean.T) @ mixture.vectors.T
        by_mean += mixture.bias
        by_mean -= by_mean.max(axis=1, keepdims=True)
        np.exp(by_mean, out=by_mean)
        by_mean *= (shares[:, -1] / by_mean.sum(axis=1))[:, None]
        out += by_mean


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
    weights, scale = tower.weights, np.float32(SCALE)
    bias, item_weights = np.zeros((2, len(ids)), np.float32)
    bias[learnt], item_weights[learnt] = weights["bias"], weights["item_weights"]
    # On some processors a product of matrices rounds equal rows in different ways. Equal titles must tie.
    vectors = (titles @ weights["project"].T)[first_equal(titles)]
    vectors[learnt] += weights["own"]
    predict = scale * weights["predict"]
    mixture = Mixture(
        vectors,
        bias,
        predict,
        scale * weights["predict_mean"],
        weights["log_weights"].copy(),
        item_weights,
        weights["mean_weights"].copy(),
        weights["mean_ages"].copy(),
        _norms(vectors @ predict.T, vectors, bias),
    )
    return TitleTowerRanker(name, ids, mixture)


def _norms(queries: Floats, vectors: Floats, bias: Floats) -> Floats:
    """Return log Σ_c exp(queries · vectorsᵀ + bias) [I] of queries [I, D]."""
    out = np.empty(len(queries), np.float32)
    for rows in blocks(len(queries), len(vectors)):
        scores = queries[rows] @ vectors.T
        scores += bias
        highest = scores.max(axis=1, keepdims=True)
        scores -= highest
        np.exp(scores, out=scores)
        out[rows] = highest[:, 0] + np.log(scores.sum(axis=1))
    return out


def save_tower(ranker: TitleTowerRanker, about: dict[str, Any], folder: Path) -> None:
    """Write a ranker and what is known `about` its training to `TOWER_FILES` in `folder`."""
    tensors = {name: np.ascontiguousarray(array) for name, array in ranker.mixture._asdict().items()}
    weights, description = (folder / name for name in TOWER_FILES)
    write_whole(weights, lambda p: save_file(tensors, p))
    write_text(description, json.dumps({**about, "items": [*ranker.index]}, ensure_ascii=False))


def load_tower(folder: Path, name: str) -> TitleTowerRanker:
    """Return the ranker that `save_tower` wrote to `folder`; raise ModelError if it is missing or damaged."""
    try:
        ids = json.loads(read_whole(folder / TOWER_FILES[1]))["items"]
        state = load_file(folder / TOWER_FILES[0])
        mixture = Mixture(**{key: state[key] for key in Mixture._fields})
        mixture.check(len(ids))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder} has no title tower, or a damaged one: {e}; train it again") from e
    return TitleTowerRanker(name, ids, mixture)


def chosen_epochs(folder: Path) -> int:
    """Return the number of epochs that validation examples chose for the tower in a folder."""
    return int(json.loads(read_whole(folder / TOWER_FILES[1]))["best_epoch"]) + 1
