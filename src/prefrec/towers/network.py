"""The weights of a title tower, the gradient of its loss, and AdamW, in numpy.

The answer to a history is a mixture of softmaxes over all n learnt items. Each of the latest items is a component,
and so is the mean of them all:

    p(c) = Σ_a π_a softmax_c(S v_a·P v_c + b_c) + π_m softmax_c(S m·P_m v_c + b_c)        m = Σ_a w_a v_a / Σ_a w_a

The shares π are a softmax of a weight for the item's age plus one for the item, and of a weight for the length of the
history. The loss is the mean of −log p(target). With r, the share of each component in p(target), its gradient by the
scores of component k is Σ_b r_bk (softmax_k − one-hot of the target) / B, and by the logarithms of its shares π − r.
`tests/support/torch_tower.py` has the same by automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
SCALE = 8.0
"""Constant factor S of the scores. With a larger P in its place, AdamW's steps would be small relative to P."""
CELLS = 2_000_000
"""Most scores that are computed at a time: about what the cache of a processor holds."""
_SMALLEST = 1e-12


class Dropped(NamedTuple):
    """What a training step drops.

    Attributes:
        keep: [n] 0 for items whose own vector and bias are dropped, otherwise 1.
        read: [n, D] factors of the items' vectors where histories are read: 0, or 1 / (1 − dropout).
    """

    keep: Floats
    read: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, items: int, width: int, own: float, dropout: float) -> Dropped:
        """Draw what a step drops: own vectors with the probability `own`, entries of histories with `dropout`."""
        keep = (rng.random(items, np.float32) >= own).astype(np.float32)
        kept = (rng.random((items, width), np.float32) >= dropout).astype(np.float32)
        kept *= np.float32(1 / (1 - dropout))
        return cls(keep, kept)


class _Read(NamedTuple):
    """The components of the histories of a batch.

    Attributes:
        items: [K] codes of the items that the histories have.
        places: [B, L] place of each history item among them; 0 in empty columns.
        vectors: [K, D] their vectors, after dropout.
        mean_shares: [B, L] share of each history item in the mean; 0 in empty columns.
        means: [B, D] means of the histories.
        shares: [B, L + 1] π: of each history item, and of the mean in the last column.
        lengths: [B] index of each history's length among `mean_weights`.
    """

    items: Indices
    places: Indices
    vectors: Floats
    mean_shares: Floats
    means: Floats
    shares: Floats
    lengths: Indices


class TitleTower:
    """The weights of a title tower with n learnt items.

    Attributes:
        titles: [n, T] title vectors of these items, which are not trained.
        weights: project W [D, T], own e [n, D] and bias b [n] of an item, with v = W t + e; predict P [D, D] and
            predict_mean P_m [D, D]; log_weights [L] of an item's age, item_weights [n] of the item and mean_weights
            [L] of the history's length, whose softmax is π; and mean_ages log w [L].
    """

    def __init__(self, titles: Floats, width: int, last: int) -> None:
        self.titles = np.ascontiguousarray(titles, np.float32)
        count, dimensions = titles.shape
        by_age = -np.log(np.arange(1, last + 1, dtype=np.float32))
        # At first, a score is the cosine of the candidate's title and one of the history.
        self.weights: dict[str, Floats] = {
            "project": np.eye(width, dimensions, dtype=np.float32),
            "predict": np.eye(width, dtype=np.float32),
            "predict_mean": np.eye(width, dtype=np.float32),
            "own": np.zeros((count, width), np.float32),
            "bias": np.zeros(count, np.float32),
            "log_weights": by_age,
            "item_weights": np.zeros(count, np.float32),
            "mean_weights": np.zeros(last, np.float32),
            "mean_ages": by_age.copy(),
        }

    def loss(self, histories: Indices, targets: Indices, dropped: Dropped) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss of targets [B] after histories [B, L] of codes, and its gradient by name of weight.

        Histories have the newest item first, and −1 in empty columns.
        """
        weights, keep, scale = self.weights, dropped.keep[:, None], np.float32(SCALE)
        vectors = self.titles @ weights["project"].T + keep * weights["own"]
        read = self._read(histories, vectors, dropped)
        known = len(read.items)
        places = np.concatenate([read.places, known + np.arange(len(targets))[:, None]], axis=1)
        queries = np.concatenate([read.vectors @ weights["predict"].T, read.means @ weights["predict_mean"].T])
        loss, parts, by_query, by_vector, by_bias = _mixture_loss(
            scale * queries, vectors, dropped.keep * weights["bias"], places, read.shares, targets
        )
        by_query *= scale
        by_read = by_query[:known] @ weights["predict"]
        by_mean = by_query[known:] @ weights["predict_mean"]
        gradients = self._by_shares(histories, read, (read.shares - parts) / np.float32(len(targets)))
        gradients["predict"] = by_query[:known].T @ read.vectors
        gradients["predict_mean"] = by_query[known:].T @ read.means
        is_item = histories >= 0
        _add_rows(by_read, read.places[is_item], (read.mean_shares[:, :, None] * by_mean[:, None, :])[is_item])
        by_share = np.einsum("bld,bd->bl", read.vectors[read.places], by_mean)
        by_share -= (read.mean_shares * by_share).sum(axis=1, keepdims=True)
        gradients["mean_ages"] = (read.mean_shares * by_share).sum(axis=0)
        by_vector[read.items] += dropped.read[read.items] * by_read
        gradients["project"] = by_vector.T @ self.titles
        gradients["own"] = keep * by_vector
        gradients["bias"] = dropped.keep * by_bias
        return loss, gradients

    def _read(self, histories: Indices, vectors: Floats, dropped: Dropped) -> _Read:
        weights, is_item = self.weights, histories >= 0
        items, found = np.unique(histories[is_item], return_inverse=True)
        places = np.zeros(histories.shape, dtype=np.int64)
        places[is_item] = found
        read = vectors[items] * dropped.read[items]
        lengths, shares, mean_shares = history_shares(histories, weights)
        if len(items):
            means = np.einsum("bl,bld->bd", mean_shares, read[places])
        else:
            means = np.zeros((len(histories), vectors.shape[1]), np.float32)
        return _Read(items, places, read, mean_shares, means, shares, lengths)

    def _by_shares(self, histories: Indices, read: _Read, by_log: Floats) -> dict[str, Floats]:
        """Return the gradients of the weights of which π is a softmax, given those by log π [B, L + 1]."""
        weights, is_item = self.weights, histories >= 0
        by_item, by_length = (np.zeros_like(weights[name]) for name in ("item_weights", "mean_weights"))
        np.add.at(by_item, histories[is_item], by_log[:, :-1][is_item])
        np.add.at(by_length, read.lengths, by_log[:, -1])
        return {"log_weights": by_log[:, :-1].sum(axis=0), "item_weights": by_item, "mean_weights": by_length}


def history_shares(histories: Indices, weights: Mapping[str, Floats]) -> tuple[Indices, Floats, Floats]:
    """Return what the weights of a tower make of histories [B, L] of codes, newest first, −1 in empty columns.

    These are the index [B] of each length among `mean_weights`, π [B, L + 1], and the shares [B, L] in the mean. All
    shares are 0 in empty columns.
    """
    is_item = histories >= 0
    lengths = np.maximum(is_item.sum(axis=1) - 1, 0)
    of_items = weights["log_weights"] + weights["item_weights"][np.maximum(histories, 0)]
    raw = np.concatenate([np.where(is_item, of_items, -np.inf), weights["mean_weights"][lengths][:, None]], axis=1)
    raw = np.exp(raw - raw.max(axis=1, keepdims=True))
    shares: Floats = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    ages = np.exp(weights["mean_ages"]) * is_item
    mean_shares: Floats = (ages / np.maximum(ages.sum(axis=1, keepdims=True), _SMALLEST)).astype(np.float32)
    return lengths, shares, mean_shares


def _mixture_loss(
    queries: Floats, vectors: Floats, bias: Floats, places: Indices, shares: Floats, targets: Indices
) -> tuple[float, Floats, Floats, Floats, Floats]:
    """Return the mean of −log p(target) of mixtures of softmax(queries · vectorsᵀ + bias), and what it needs.

    These are the share [B, L + 1] of each component in p(target), and the gradients by queries, vectors and bias. The
    bias is one more column of the vectors, and what divides a row of exponentials is applied to its query.

    Args:
        queries: [K, D] of the components.
        vectors: [n, D] of the items.
        bias: [n] of the items.
        places: [B, L + 1] component of each place of a mixture.
        shares: [B, L + 1] π.
        targets: [B] codes of the items.
    """
    count, width = len(targets), vectors.shape[1]
    # [V b] and [q 1], so that one product has the bias, and its gradient by vectors that by the bias.
    items = np.concatenate([vectors, bias[:, None]], axis=1)
    rows = np.concatenate([queries, np.ones((len(queries), 1), np.float32)], axis=1)
    values = np.empty((len(rows), len(items)), np.float32)
    sums, step = np.empty(len(rows), np.float32), max(1, CELLS // max(len(items), 1))
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    for part in parts:
        scores = np.matmul(rows[part], items.T, out=values[part])
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        sums[part] = scores.sum(axis=1)
    terms = shares * values[places, targets[:, None]] / sums[places]
    probabilities = np.maximum(terms.sum(axis=1), np.float32(1e-30))
    terms /= probabilities[:, None]
    whole = np.bincount(places.ravel(), weights=terms.ravel(), minlength=len(rows))
    factors = (whole / (sums * count)).astype(np.float32)[:, None]
    by_rows, by_items = np.empty_like(rows), np.zeros_like(items)
    for part in parts:
        np.multiply(values[part] @ items, factors[part], out=by_rows[part])
        by_items += values[part].T @ (rows[part] * factors[part])
    weighted = (terms / np.float32(-count)).reshape(-1, 1)
    chosen = np.repeat(targets, places.shape[1])
    _add_rows(by_rows, places.ravel(), weighted * items[chosen])
    _add_rows(by_items, chosen, weighted * rows[places.ravel()])
    loss = -float(np.log(probabilities).mean(dtype=np.float64))
    return loss, terms, by_rows[:, :width], np.ascontiguousarray(by_items[:, :width]), by_items[:, width]


def _add_rows(table: Floats, codes: Indices, rows: Floats) -> None:
    """Add rows [N, D] to those of a table with these codes [N], which may repeat, always in the same order."""
    if not len(codes):
        return
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    starts = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]])
    table[sorted_codes[starts]] += np.add.reduceat(rows[order], starts, axis=0)


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) on a dict of weights, which it changes in place.

    Attributes:
        moments: name → running means of the gradient and of its square, each of the weight's shape.
        steps: number of steps taken.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, weights: Mapping[str, Floats], weight_decay: float) -> None:
        self.weights = weights
        self.weight_decay = weight_decay
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
        self.steps = 0

    def step(self, gradients: Mapping[str, Floats], learning_rate: float) -> None:
        """Take a step against the gradient of each weight."""
        self.steps += 1
        first_beta, second_beta = self.BETAS
        size = np.float32(learning_rate / (1 - first_beta**self.steps))
        shrink = np.float32(1 / np.sqrt(1 - second_beta**self.steps))
        for name, weight in self.weights.items():
            gradient, (first, second) = gradients[name], self.moments[name]
            weight *= np.float32(1 - learning_rate * self.weight_decay)
            first += np.float32(1 - first_beta) * (gradient - first)
            second *= np.float32(second_beta)
            second += np.float32(1 - second_beta) * gradient * gradient
            scale = np.sqrt(second)
            scale *= shrink
            scale += np.float32(self.EPSILON)
            weight -= size * first / scale
