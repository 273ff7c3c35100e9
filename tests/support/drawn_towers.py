"""Title towers with random weights, and their scores by loops."""

import math

import numpy as np

from prefrec.towers.network import SCALE, TitleTower
from prefrec.towers.title_tower import TitleTowerRanker, as_ranker


def random_tower(titles: np.ndarray, width: int, last: int, seed: int = 1) -> TitleTower:
    """A tower whose weights are all random."""
    tower, rng = TitleTower(titles, width, last), np.random.default_rng(seed)
    for weight in tower.weights.values():
        weight[...] = rng.standard_normal(weight.shape)
    return tower


def tower_of(ids: list[str], vectors: np.ndarray) -> TitleTowerRanker:
    """An untrained tower whose item vectors are these vectors [I, D]."""
    tower = TitleTower(vectors, vectors.shape[1], 2)
    return as_ranker(tower, "tower", ids, tower.titles, np.arange(len(ids)))


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    raw = [math.exp(v - highest) for v in values]
    return [r / sum(raw) for r in raw]


def slow_scores(tower: TitleTower, history: list[int], keep=None, read=None) -> list[float]:
    """The log-probabilities of all items after a history of codes, newest first, by loops over items and components.

    `keep` [n] and `read` [n, D] say what a training step drops.
    """
    weights = {name: weight.astype(np.float64) for name, weight in tower.weights.items()}
    width, count = len(weights["project"]), len(tower.titles)
    keep = np.ones(count) if keep is None else keep
    read = np.ones((count, width)) if read is None else read
    vectors = [
        [sum(weights["project"][d] * title) + keep[i] * weights["own"][i, d] for d in range(width)]
        for i, title in enumerate(tower.titles.astype(np.float64))
    ]

    def after(query: list[float], predict: np.ndarray) -> list[float]:
        state = [SCALE * sum(predict[d, k] * query[k] for k in range(width)) for d in range(width)]
        products = [sum(v * s for v, s in zip(vector, state, strict=True)) for vector in vectors]
        return softmax([p + k * b for p, k, b in zip(products, keep, weights["bias"], strict=True)])

    seen = [[v * f for v, f in zip(vectors[item], read[item], strict=True)] for item in history]
    ages = [math.exp(w) for w in weights["mean_ages"][: len(history)]]
    mean = [sum(age * v[d] for age, v in zip(ages, seen, strict=True)) / max(sum(ages), 1e-12) for d in range(width)]
    components = [after(v, weights["predict"]) for v in seen] + [after(mean, weights["predict_mean"])]
    of_items = [weights["log_weights"][age] + weights["item_weights"][item] for age, item in enumerate(history)]
    shares = softmax([*of_items, weights["mean_weights"][max(len(history) - 1, 0)]])
    return [math.log(sum(s * p[i] for s, p in zip(shares, components, strict=True))) for i in range(count)]
