"""Random examples before and after alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from prefrec.report.wording import label
from prefrec.runs.contents import RunContents

EACH, SEED = 2, 0
"""Number of examples of each outcome, and the seed of the sample."""


def pick_examples(run: RunContents) -> dict[str, Any] | str:
    """Return up to `EACH` examples each in which the target's rank improved, worsened and stayed the same.

    The result also has the names of both rankers and the count of each outcome. Candidates are sorted by the ranker
    after alignment. If there is nothing to show, return a sentence that says why.
    """
    data, predictions = run.data, run.results.predictions
    if data is None or predictions is None:
        return "Examples need the prepared data and the predictions."
    names = set(predictions["ranker"].unique().to_list())
    chain = [n for n in ("zero-shot", *(s.name for s in run.stages)) if n in names]
    if len(chain) < 2:
        return "Examples need the predictions of two models, before and after a training stage."
    first, last = "sft" if "sft" in chain[:-1] else chain[0], chain[-1]
    columns = ["row", "user_id", "target", "candidates", "scores", "rank"]
    one, other = (predictions.filter(pl.col("ranker") == name).select(columns) for name in (first, last))
    rows = one.join(other.select("row", "scores", "rank"), on="row", suffix="_after").sort("row")
    if rows.is_empty():
        return f"{label(first)} and {label(last)} have no examples in common."
    moved = rows["rank"].cast(pl.Int64).to_numpy() - rows["rank_after"].cast(pl.Int64).to_numpy()
    groups = {"better": moved > 0, "worse": moved < 0, "same": moved == 0}
    known = {(e.user_id, e.target, e.candidates): e for e in data.split(run.results.split)}
    rng = np.random.default_rng(SEED)
    examples = []
    for outcome, chosen in groups.items():
        numbers = np.flatnonzero(chosen)
        for i in sorted(rng.choice(numbers, min(EACH, len(numbers)), replace=False).tolist()) if len(numbers) else []:
            row = rows.row(i, named=True)
            question = known.get((row["user_id"], row["target"], tuple(row["candidates"])))
            if question is None:  # the data were prepared again after the predictions
                continue
            before = _answers(row["scores"], question.target_index, row["rank"])
            after = _answers(row["scores_after"], question.target_index, row["rank_after"])
            titles = data.catalogue.titles_of(question.candidates)
            lines: list[dict[str, Any]] = [
                {"title": t, "before": b, "after": a} for t, b, a in zip(titles, before, after, strict=True)
            ]
            target = lines[question.target_index]
            lines.sort(key=lambda c: (c["after"]["rank"], c is not target))
            history = data.catalogue.titles_of(question.history)
            shown = {"outcome": outcome, "history": history, "target": target, "candidates": lines}
            examples.append({"row": row["row"], "user": row["user_id"], **shown})
    counts = {outcome: int(chosen.sum()) for outcome, chosen in groups.items()}
    return {"before": label(first), "after": label(last), "counts": counts, "examples": examples}


def _answers(scores: Sequence[float], target: int, target_rank: int) -> list[dict[str, Any]]:
    """Return rank and share (softmax) of each candidate [C]; the target's rank is the recorded one."""
    s = np.asarray(scores, dtype=np.float64)
    ranks = [1 + int((s > score).sum()) for score in s]
    ranks[target] = target_rank
    return [{"rank": r, "share": float(p)} for r, p in zip(ranks, softmax(s), strict=True)]
