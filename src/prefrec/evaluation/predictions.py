"""The predictions file: one Parquet row per ranker and example.

All metrics can be computed from it (`evaluate_predictions`), and two runs can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, Query, RankingExample
from prefrec.data.parquet import UNREADABLE, read_parquet
from prefrec.errors import DataError, ModelError, first_words
from prefrec.prompts.answers import valid_choice
from prefrec.rankers.base import Ranker

PREDICTION_SCHEMA = pl.Schema(
    [
        ("ranker", pl.String()),
        ("row", pl.UInt32()),  # index of the example: the key that pairs rankers
        ("user_id", pl.String()),
        ("target", pl.String()),
        ("candidates", pl.List(pl.String())),  # all of them, or only the best
        ("scores", pl.List(pl.Float64())),  # of these candidates
        ("rank", pl.UInt32()),  # of the target: 1 + number of candidates scored above it
        ("tied", pl.UInt32()),  # number of other candidates with the target's score
        ("generated", pl.String()),  # the decoded text; null for rankers that do not generate
        ("choice", pl.String()),  # id of the item that the text names; null if the text is invalid or absent
        ("listed", pl.UInt32()),  # number of candidates of the example
        # In full ranking: rank, ties and number of candidates among items of the target's class, known or new.
        ("class_rank", pl.UInt32()),
        ("class_tied", pl.UInt32()),
        ("class_listed", pl.UInt32()),
    ]
)


def judge_texts(texts: Sequence[str], examples: Sequence[RankingExample], catalogue: Catalogue) -> list[str | None]:
    """Return the id [B] of the item that each generated text names, or None if the text is invalid.

    A text is valid if it equals the title of a candidate, after `normalise_title` on both sides. An invalid answer is
    a miss, as in the S-DPO paper's HR@1; the Valid Ratio is the share of valid answers.
    """
    columns = [valid_choice(t, catalogue.titles_of(e.candidates)) for t, e in zip(texts, examples, strict=True)]
    return [None if c is None else e.candidates[c] for c, e in zip(columns, examples, strict=True)]


def judge_substrings(predictions: pl.DataFrame, catalogue: Catalogue) -> pl.Series:
    """Return the id of the candidate whose title occurs in each generated text, or null if none or several occur.

    This is the S-DPO authors' judge. If both "It" and "It Happened One Night" are candidates, the second never wins.
    """
    rows = predictions.select("generated", "candidates").iter_rows()
    matches = [[i for i in listed if catalogue.titles[i] in text] for text, listed in rows]
    return pl.Series([items[0] if len(items) == 1 else None for items in matches], dtype=pl.String)


def prediction_frame(
    ranker: str,
    examples: Sequence[RankingExample],
    scores: NDArray[np.float64],
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]],
    generated: Sequence[str] | None = None,
    choices: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """Return one ranker's predictions as a frame of `PREDICTION_SCHEMA`.

    `ranks` are the `target_ranks` of the scores [B, C]; `choices` are the ids that the `generated` texts [B] name.
    """
    columns: dict[str, Sequence[Any]] = {
        "ranker": [ranker] * len(examples),
        "row": range(len(examples)),
        "user_id": [e.user_id for e in examples],
        "target": [e.target for e in examples],
        "candidates": [list(e.candidates) for e in examples],
        "scores": [row[: len(e.candidates)].tolist() for row, e in zip(scores, examples, strict=True)],
        "rank": ranks[0].tolist(),
        "tied": ranks[1].tolist(),
        "generated": generated or [None] * len(examples),
        "choice": choices or [None] * len(examples),
        "listed": [len(e.candidates) for e in examples],
    }
    columns |= {name: [None] * len(examples) for name in ("class_rank", "class_tied", "class_listed")}
    return pl.DataFrame(columns).cast(PREDICTION_SCHEMA)


def ranks_of(predictions: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ranks [B] and ties [B] of the targets, as `target_ranks` does."""
    ranks, tied = (predictions[name].cast(pl.Int64).to_numpy() for name in ("rank", "tied"))
    return ranks, tied


def read_predictions(path: Path) -> pl.DataFrame:
    """Return the predictions in a file.

    Raise DataError if the file is missing or not Parquet, or a column is missing or has another type.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `prefrec run` writes it")
    try:
        return read_parquet(path).select(PREDICTION_SCHEMA.names()).cast(PREDICTION_SCHEMA)
    except UNREADABLE as e:
        raise DataError(f"{path}: not a predictions file ({first_words(e)}); run the recipe again") from None


def checked_scores(ranker: Ranker, queries: Sequence[Query]) -> NDArray[Any]:
    """Return a ranker's scores [B, C] of the candidates of queries.

    Raise ModelError if they do not have this shape or are not numbers, or one is +inf. `target_ranks` refuses NaN.
    """
    result = ranker.score(queries)
    scores, said = np.asarray(result), f"ranker {ranker.name!r}: "
    expected = (len(queries), max((len(q.candidates) for q in queries), default=0))
    if scores.shape != expected:
        raise ModelError(f"{said}expected scores of shape {expected}, got {scores.shape}")
    if isinstance(result, np.ma.MaskedArray):
        raise ModelError(f"{said}scores are a masked array, whose mask would be lost; return .filled(-np.inf)")
    if scores.dtype.kind not in "biuf":
        raise ModelError(f"{said}expected scores that are numbers, got the type {scores.dtype}")
    # The largest number that is not NaN, in one pass.
    if scores.size and np.fmax.reduce(scores, axis=None) == np.inf:
        raise ModelError(f"{said}a score is +inf, which cannot be ordered; use finite numbers")
    return scores
