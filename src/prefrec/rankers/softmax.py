"""The softmax of any ranker: items sampled from it, and rankers fitted without a fold's users."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prefrec.console import track
from prefrec.data import RankingExample
from prefrec.data.rows import take
from prefrec.rankers.base import Ranker, checked_scores
from prefrec.rankers.blend import FOLDS, user_folds
from prefrec.rankers.matrices import best_items, blocks


class FoldRanker:
    """Scores each example by a ranker that was fitted without the users of the example's fold.

    So an example's own target is not in the counts that score it. Only one fold's ranker is in memory.

    Args:
        name: name of the ranker.
        load: fold, from 0 to `FOLDS` − 1 → the ranker that was fitted without its users.
    """

    def __init__(self, name: str, load: Callable[[int], Ranker]) -> None:
        self.name = name
        self.load = lru_cache(maxsize=1)(load)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        scores = np.full((len(examples), max((len(e.candidates) for e in examples), default=0)), -np.inf)
        folds = user_folds(examples, FOLDS)
        for fold in np.unique(folds).tolist():
            rows = np.flatnonzero(folds == fold)
            found = self.load(fold).score(take(examples, rows))
            scores[rows, : found.shape[1]] = found
        return scores


def softmax_sample(
    ranker: Ranker,
    ids: Sequence[str],
    temperature: float,
    examples: Sequence[RankingExample],
    k: int,
    rngs: Iterable[np.random.Generator],
    without: Iterable[Collection[str]],
) -> list[list[str]]:
    """Sample items for each example without replacement, in proportion to exp(score / temperature).

    Args:
        ranker: scores the items.
        ids: [I] ids of the items to sample from.
        temperature: divides the scores.
        examples: [B] examples; their candidates are ignored.
        k: number of items per example; fewer if fewer are left.
        rngs: a generator per example.
        without: ids of items to exclude, per example.

    Returns:
        [B] lists of item ids. Raise ModelError if a score is NaN.
    """
    index = {item: code for code, item in enumerate(ids)}
    generators, excluded = list(rngs), list(without)
    sampled: list[list[str]] = [[] for _ in examples]
    for row, own in _scores_of_all(ranker, ids, examples):
        # Gumbel top-k is a sample without replacement.
        noisy = own / temperature + generators[row].gumbel(size=len(ids))
        unable = np.flatnonzero(np.isneginf(own)).tolist()
        left_out = {*unable, *(index[item] for item in excluded[row] if item in index)}
        sampled[row] = [ids[i] for i in best_items(noisy, k, list(left_out)).tolist()]
    return sampled


def _scores_of_all(
    ranker: Ranker, ids: Sequence[str], examples: Sequence[RankingExample]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the number of each example with its scores [I] of all items, in blocks that fit into memory."""
    ids = tuple(ids)
    # One fold after the other, because `FoldRanker` keeps one.
    order = np.argsort(user_folds(examples, FOLDS), kind="stable")
    # Small blocks, because a blend has an array of this size for each of its parts.
    for block in track([*blocks(len(examples), 8 * len(ids))], f"{ranker.name}: sampling"):
        rows = order[block].tolist()
        scores = checked_scores(ranker, [replace(examples[row], candidates=ids) for row in rows])
        yield from zip(rows, scores, strict=True)
