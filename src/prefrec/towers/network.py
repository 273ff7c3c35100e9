"""The weights of a title tower, the gradient of its loss, and AdamW, in numpy.

The loss of a target is −log softmax of its score over all n learnt items. With G = (softmax − one-hot) / B [B, n],
and the names of `TitleTower`, its gradient is

    ∂s = G V        ∂V = Gᵀ s + what histories add        ∂b = keep · Gᵀ 1
    ∂P = S · ∂sᵀ m  ∂m = S · ∂s P                         ∂v_a = w_a ∂m for each history item of age a
    ∂W = ∂Vᵀ t      ∂e = keep · ∂V

where a target's state is s = S · P m, and m = Σ_a w_a v_a / Σ_a w_a. `tests/support/torch_tower.py` has the same by
automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SCALE = 8.0
"""Constant factor S of the scores. With a larger P in its place, AdamW's steps would be small relative to P."""
CELLS = 2_000_000
"""Most scores in memory at a time: about what the cache of a processor holds."""
_SMALLEST = 1e-12


class Dropped(NamedTuple):
    """What a training step drops.

    Attributes:
        keep: [n] 0 for items whose own vector and bias are dropped, otherwise 1.
        read: [B, L, D] factors of the vectors of history items: 0, or 1 / (1 − dropout).
    """

    keep: Floats
    read: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, items: int, read: tuple[int, ...], own: float, dropout: float) -> Dropped:
        """Draw what a step drops: own vectors with the probability `own`, entries of histories with `dropout`."""
        keep = (rng.random(items, np.float32) >= own).astype(np.float32)
        kept = (rng.random(read, np.float32) >= dropout).astype(np.float32)
        kept *= np.float32(1 / (1 - dropout))
        return cls(keep, kept)


class TitleTower:
    """The weights of a title tower with n learnt items.

    Attributes:
        titles: [n, T] title vectors of these items, which are not trained.
        weights: project W [D, T], predict P [D, D], own e [n, D], bias b [n], and log_weights log w [L].
    """

    def __init__(self, titles: Floats, width: int, last: int) -> None:
        self.titles = np.ascontiguousarray(titles, np.float32)
        count, dimensions = titles.shape
        # At first, a score is the cosine of the candidate's title and those of the history.
        self.weights: dict[str, Floats] = {
            "project": np.eye(width, dimensions, dtype=np.float32),
            "predict": np.eye(width, dtype=np.float32),
            "own": np.zeros((count, width), np.float32),
            "bias": np.zeros(count, np.float32),
            "log_weights": -np.log(np.arange(1, last + 1, dtype=np.float32)),
        }

    def loss(
        self, histories: NDArray[np.int64], targets: NDArray[np.int64], dropped: Dropped
    ) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss of targets [B] after histories [B, L] of codes, and its gradient by name of weight."""
        weights, keep = self.weights, dropped.keep[:, None]
        vectors = self.titles @ weights["project"].T + keep * weights["own"]
        shares, codes = self._shares(histories), np.maximum(histories, 0)
        read = vectors[codes] * dropped.read
        mean = np.einsum("bl,bld->bd", shares, read)
        states = np.float32(SCALE) * (mean @ weights["predict"].T)
        loss, by_state, by_vector, by_bias = _softmax_loss(states, vectors, dropped.keep * weights["bias"], targets)
        by_state *= np.float32(SCALE)
        by_mean = by_state @ weights["predict"]
        by_read = dropped.read * (shares[:, :, None] * by_mean[:, None, :])
        is_item = histories >= 0
        _add_rows(by_vector, codes[is_item], by_read[is_item])
        by_share = np.einsum("bld,bd->bl", read, by_mean)
        by_share -= (shares * by_share).sum(axis=1, keepdims=True)
        return loss, {
            "project": by_vector.T @ self.titles,
            "predict": by_state.T @ mean,
            "own": keep * by_vector,
            "bias": dropped.keep * by_bias,
            "log_weights": (shares * by_share).sum(axis=0),
        }

    def _shares(self, histories: NDArray[np.int64]) -> Floats:
        """Return the weight [B, L] of each history item, which sum to 1; 0 in empty columns."""
        raw = np.exp(self.weights["log_weights"]) * (histories >= 0)
        return (raw / np.maximum(raw.sum(axis=1, keepdims=True), _SMALLEST)).astype(np.float32)


def _softmax_loss(
    states: Floats, vectors: Floats, bias: Floats, targets: NDArray[np.int64]
) -> tuple[float, Floats, Floats, Floats]:
    """Return the mean of −log softmax(states · vectorsᵀ + bias)[target], and its gradient by states, vectors, bias.

    The scores of a few rows at a time are in memory, and each is read as often as the three products need: the bias
    is one more column of the vectors, and what divides a row is applied to its state.
    """
    count, width = len(targets), vectors.shape[1]
    # [V b] and [s 1], so that one product has the bias, and its gradient by vectors that by the bias.
    items = np.concatenate([vectors, bias[:, None]], axis=1)
    rows = np.concatenate([states, np.ones((count, 1), np.float32)], axis=1)
    by_rows, by_items = np.empty_like(rows), np.zeros_like(items)
    total, step = 0.0, max(1, CELLS // max(len(items), 1))
    for start in range(0, count, step):
        part = slice(start, start + step)
        scores = rows[part] @ items.T
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(len(scores)), targets[part]]
        np.exp(scores, out=scores)
        sums = scores.sum(axis=1, keepdims=True)
        total += float((np.log(sums[:, 0]) - chosen).sum(dtype=np.float64))
        sums *= count
        by_rows[part] = (scores @ items) / sums
        by_items += scores.T @ (rows[part] / sums)
    by_rows -= items[targets] / np.float32(count)
    rows *= np.float32(-1 / count)
    _add_rows(by_items, targets, rows)
    return total / count, by_rows[:, :width], np.ascontiguousarray(by_items[:, :width]), by_items[:, width]


def _add_rows(table: Floats, codes: NDArray[np.int64], rows: Floats) -> None:
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
