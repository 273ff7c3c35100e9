"""Rows before and after alignment, picked by a rule and not by taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData, RankingExample
from prefrec.report.wording import label
from prefrec.runs.contents import RunContents

EACH = 2
"""Examples of each outcome."""

SEED = 0
"""Of the draw among the rows of one outcome."""

OUTCOMES = ("better", "worse", "same")

_Known = dict[tuple[str, str, tuple[str, ...]], RankingExample]


@dataclass(frozen=True)
class Answer:
    """What a ranker says of a candidate: its rank from 1, and its share of the probability."""

    rank: int
    share: float

    @property
    def percent(self) -> str:
        """`7%`, or `<1%`."""
        return f"{self.share:.0%}" if self.share >= 0.01 else "<1%"


@dataclass(frozen=True)
class Candidate:
    """A line of an example."""

    title: str
    is_target: bool
    before: Answer
    after: Answer


@dataclass(frozen=True)
class Example:
    """A test row: titles, and the candidates in the order of the ranker after alignment."""

    row: int
    user: str
    outcome: str
    history: list[str]
    candidates: list[Candidate]

    @property
    def target(self) -> Candidate:
        """The line of the target."""
        return next(c for c in self.candidates if c.is_target)


@dataclass(frozen=True)
class Examples:
    """The picked rows, the two rankers, and how many rows there are of each outcome."""

    before: str
    after: str
    counts: dict[str, int]
    examples: list[Example]


def pick_examples(run: RunContents) -> Examples | str:
    """Up to `EACH` rows where the target's rank got better, worse, and stayed the same.

    The rows of each outcome are drawn at random with a fixed seed. Returns a sentence where there is nothing
    to show.
    """
    if run.data is None or run.predictions is None:
        return "Examples need the prepared data and the predictions."
    pair = rankers_to_compare(run)
    if pair is None:
        return "Examples need the predictions of two models, before and after a training stage."
    rows = _joined(run.predictions, *pair)
    if rows.is_empty():
        return f"{label(pair[0])} and {label(pair[1])} answered no row in common."
    moved = rows["rank"].cast(pl.Int64).to_numpy() - rows["rank_after"].cast(pl.Int64).to_numpy()
    groups = {name: np.flatnonzero(of) for name, of in zip(OUTCOMES, (moved > 0, moved < 0, moved == 0), strict=True)}
    known = {(e.user_id, e.target, e.candidates): e for e in run.data.split(run.split)}
    rng = np.random.default_rng(SEED)
    picked = [(name, i) for name, group in groups.items() for i in _draw(group, rng)]
    found = [_example(rows.row(i, named=True), name, known, run.data) for name, i in picked]
    counts = {name: len(group) for name, group in groups.items()}
    return Examples(label(pair[0]), label(pair[1]), counts, [e for e in found if e])


def rankers_to_compare(run: RunContents) -> tuple[str, str] | None:
    """SFT and the last alignment; where one of them is lacking, the model before the last stage and the last."""
    if run.predictions is None:
        return None
    names = set(run.predictions["ranker"].unique().to_list())
    chain = [n for n in ("zero-shot", *(s.name for s in run.stages)) if n in names]
    if len(chain) < 2:
        return None
    return ("sft", chain[-1]) if "sft" in chain[:-1] else (chain[0], chain[-1])


def shares(scores: Sequence[float]) -> NDArray[np.float64]:
    """Softmax [C] of log-probabilities: each candidate's probability, given that one of them is the answer."""
    s = np.asarray(scores, dtype=np.float64)
    weights = np.exp(s - s.max())
    return weights / weights.sum()


def _joined(predictions: pl.DataFrame, before: str, after: str) -> pl.DataFrame:
    key = ["row", "user_id", "target", "candidates"]
    one = predictions.filter(pl.col("ranker") == before).select(*key, "scores", "rank")
    other = predictions.filter(pl.col("ranker") == after).select("row", "scores", "rank")
    return one.join(other, on="row", suffix="_after").sort("row")


def _draw(group: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    return sorted(int(i) for i in rng.choice(group, min(EACH, len(group)), replace=False)) if len(group) else []


def _example(row: dict[str, Any], outcome: str, known: _Known, data: PreparedData) -> Example | None:
    asked: RankingExample | None = known.get((row["user_id"], row["target"], tuple(row["candidates"])))
    if asked is None:
        return None
    target = asked.target_index
    before = _answers(row["scores"], target, row["rank"])
    after = _answers(row["scores_after"], target, row["rank_after"])
    titles = data.catalogue.titles_of(asked.candidates)
    lines = [Candidate(t, i == target, before[i], after[i]) for i, t in enumerate(titles)]
    lines.sort(key=lambda c: (c.after.rank, not c.is_target))
    return Example(row["row"], row["user_id"], outcome, data.catalogue.titles_of(asked.history), lines)


def _answers(scores: Sequence[float], target: int, target_rank: int) -> list[Answer]:
    """Ranks and shares [C]; the target's rank is the one that was counted, ties broken."""
    s = np.asarray(scores, dtype=np.float64)
    ranks = [1 + int((s > own).sum()) for own in s]
    ranks[target] = target_rank
    return [Answer(r, float(p)) for r, p in zip(ranks, shares(scores), strict=True)]
