"""Title towers with random weights, and their scores by loops."""

import math

import numpy as np

from prefrec.towers.network import SCALE, TitleTower


def random_tower(titles: np.ndarray, width: int, last: int, seed: int = 1) -> TitleTower:
    """A tower whose weights are all random."""
    tower, rng = TitleTower(titles, width, last), np.random.default_rng(seed)
    for weight in tower.weights.values():
        weight[...] = rng.standard_normal(weight.shape)
    return tower


def slow_scores(tower: TitleTower, history: list[int], keep=None, factors=None) -> list[float]:
    """The scores of all items after a history of codes, newest first, by loops over items and dimensions.

    `keep` [n] and `factors` [L, D] say what a training step drops.
    """
    weights = {name: weight.astype(np.float64) for name, weight in tower.weights.items()}
    width, count = len(weights["project"]), len(tower.titles)
    keep = np.ones(count) if keep is None else keep
    factors = np.ones((len(history), width)) if factors is None else factors
    vectors = [
        [sum(weights["project"][d] * title) + keep[i] * weights["own"][i, d] for d in range(width)]
        for i, title in enumerate(tower.titles.astype(np.float64))
    ]
    ages = [math.exp(w) for w in weights["log_weights"][: len(history)]]
    mean = [0.0] * width
    for age, item, factor in zip(ages, history, factors, strict=True):
        for d in range(width):
            mean[d] += age * vectors[item][d] * factor[d] / sum(ages)
    state = [SCALE * sum(weights["predict"][d, k] * mean[k] for k in range(width)) for d in range(width)]
    products = [sum(v * s for v, s in zip(vector, state, strict=True)) for vector in vectors]
    return [product + k * b for product, k, b in zip(products, keep, weights["bias"], strict=True)]
