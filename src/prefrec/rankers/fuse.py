"""Fuse rankers: a weighted sum of their scores, each standardised within a row's candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from prefrec.data import RankingExample
from prefrec.rankers.base import ComposedRanker, Ranker, checked_scores
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.rows import pad_scores

FUSE_FILE = "fuse.json"
"""File of the chosen weights and their quality, in the folder of the stage."""
GRID = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights to try for a part."""
SIGNED_GRID = (*(-w for w in reversed(GRID[1:])), *GRID)
"""Weights to try for the title prior, which may count against a title."""
Weights = tuple[float, ...]
"""One weight per part."""


class FuseConfig(RankerConfig):
    """Rankers whose standardised scores are added, and the validation rows that choose their weights."""

    kind: Literal["fuse"] = "fuse"
    name: str = Field("fused", description="Folder, and name in the tables.")
    parts: list[str] = Field(
        ["sft", "item-kNN"], min_length=1, description="Names of reference rows, or of rankers made before this one."
    )
    title_prior: bool = Field(
        False, description="One more part: the untuned model's log-probability of a title without any history."
    )
    weights: list[float] | None = Field(
        None, description="Of the parts, in their order; None: chosen on validation rows."
    )
    rows: int | None = Field(300, ge=1, description="Validation rows that choose the weights; None: all.")
    candidates: Literal["list", "catalogue"] = Field(
        "list", description="Of these rows: their own lists, or the whole catalogue."
    )

    @model_validator(mode="after")
    def _more_than_one_part(self) -> Self:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts: a ranker is named twice ({', '.join(self.parts)})")
        count = len(self.parts) + self.title_prior
        if count < 2:
            raise ValueError(f"parts: {self.parts[0]!r} alone cannot be fused; name a second part or set title_prior")
        if self.weights is not None and (len(self.weights) != count or not any(self.weights)):
            raise ValueError(f"weights: expected {count}, one per part and not all 0, got {self.weights}")
        return self


class FuseRanker:
    """Score of a candidate = Σ over parts of weight × the part's score, standardised within the row's candidates.

    Parts with weight 0 are not asked.
    """

    def __init__(self, name: str, parts: Sequence[Ranker], weights: Sequence[float]) -> None:
        used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight]
        if not used:
            raise ValueError(f"{name}: all weights are 0")
        self.name = name
        self.parts = [part for part, _ in used]
        self.weights = tuple(weight for _, weight in used)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty places. ModelError if a part's score is NaN."""
        return weighted_sum([standardise(checked_scores(part, examples)) for part in self.parts], self.weights)

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on to the parts that can use them."""
        for part in self.parts:
            if isinstance(part, ComposedRanker):
                part.know(answers)


@dataclass(eq=False)
class TitlePriorRanker:
    """Score of a candidate = log-probability of its title after a prompt without history and candidates.

    All titles are scored at once, for the first row.
    """

    name: str
    lm: CatalogueRanker

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        return pad_scores([[self._logps[c] for c in e.candidates] for e in examples])

    @cached_property
    def _logps(self) -> dict[str, float]:
        ids = self.lm.lm.catalogue.ids
        question = RankingExample("", (), tuple(ids), ids[0])
        return dict(zip(ids, self.lm.score([question])[0].tolist(), strict=True))


def standardise(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores [B, C] with mean 0 and standard deviation 1 over the finite entries of each row.

    A row whose finite entries are all equal becomes zeros. Entries that are not finite stay as they are.
    """
    finite = np.isfinite(scores)
    count = np.maximum(finite.sum(axis=1, keepdims=True), 1)
    highest = np.where(finite, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    lowest = np.where(finite, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    varied = finite & (highest > lowest)
    # First to [0, 1]: then equal scores are exactly 0, and no square of a very small or large score is 0 or infinite.
    unit = np.divide(scores - lowest, highest - lowest, out=np.zeros(scores.shape), where=varied)
    centred = unit - unit.sum(axis=1, keepdims=True) / count
    deviation = np.sqrt(np.where(finite, centred**2, 0.0).sum(axis=1, keepdims=True) / count)
    z = np.divide(centred, deviation, out=np.zeros(scores.shape), where=varied)
    return np.where(finite, z, scores)


def weighted_sum(parts: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return Σ weight × scores [B, C] of standardised parts; -inf where a part with a weight has no finite score."""
    total = np.zeros_like(parts[0])
    for scores, weight in zip(parts, weights, strict=True):
        if weight:  # 0 × -inf is NaN, and a negative weight would make -inf the highest score
            total += np.where(np.isfinite(scores), weight * scores, -np.inf)
    return total


def choose_weights(grids: Sequence[Sequence[float]], quality: Callable[[Weights], float]) -> Weights:
    """Return the weights of the highest quality that coordinate ascent finds.

    It starts from each part alone. A step tries all of a part's grid and keeps the other weights. Only ratios matter:
    the first weight that is not 0 is 1 (or -1), and the others are of their grids. Of weights with the same quality
    those with fewer parts win, then those with the smaller sum of sizes, then those of earlier parts. `grids` are the
    weights to try, of each part.
    """
    cached_quality = cache(quality)

    def order(weights: Weights) -> tuple[float, int, float, Weights]:
        earlier_parts_first = tuple(-w for w in weights)
        return -cached_quality(weights), sum(w != 0 for w in weights), sum(map(abs, weights)), earlier_parts_first

    alone = [tuple(float(i == k) for i in range(len(grids))) for k in range(len(grids))]
    return min((_ascend(start, grids, order) for start in alone), key=order)


def _ascend(start: Weights, grids: Sequence[Sequence[float]], order: Callable[[Weights], Any]) -> Weights:
    """Return weights of which no single one can be changed to come earlier in the order."""
    best, before = start, None
    while best != before:
        before = best
        for k, grid in enumerate(grids):
            changed = [(*best[:k], w, *best[k + 1 :]) for w in grid]
            scaled = [_scaled(weights) for weights in changed if any(weights)]
            allowed = [weights for weights in scaled if all(w in g for w, g in zip(weights, grids, strict=True))]
            best = min([best, *allowed], key=order)
    return best


def _scaled(weights: Weights) -> Weights:
    first = abs(next(w for w in weights if w))
    return tuple(w / first for w in weights)


def formula(weights: Mapping[str, float]) -> str:
    """Return weights as a sum, such as `sft + 2·item-kNN − 0.5·title prior`."""
    sizes = {name: "" if abs(w) == 1 else f"{abs(w):g}·" for name, w in weights.items()}
    terms = (f"{'−' if w < 0 else '+'} {sizes[name]}{name}" for name, w in weights.items() if w)
    return " ".join(terms).removeprefix("+ ")


def fusion_sentence(name: str, chosen: Mapping[str, Any]) -> str:
    """Return the content of the ranker's `FUSE_FILE` as a sentence."""
    reached = {part: f"{value:.3f}" for part, value in chosen["ndcg@10"].items()}
    alone = ", ".join(f"{part} {value}" for part, value in reached.items() if part != name)
    lists = "the whole catalogue" if chosen["candidates"] == "catalogue" else "their candidates"
    how = "weights as given; on" if chosen.get("given") else "weights chosen on"
    return (
        f"{name} = {formula(chosen['weights'])}, {how} {chosen['n']:,} validation rows over {lists}: "
        f"NDCG@10 {reached[name]} there; alone: {alone}"
    )
