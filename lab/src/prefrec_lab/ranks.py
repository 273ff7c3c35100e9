"""Ranks of all examples in a small file, from which all tables can be computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from prefrec.data.readers import UNREADABLE, first_words, read_parquet
from prefrec.errors import DataError
from prefrec.evaluation.evaluate import evaluate_predictions
from prefrec.evaluation.outcome import Evaluation
from prefrec.evaluation.predictions import PREDICTION_SCHEMA
from prefrec.evaluation.verdict import Audit, NoAudit
from prefrec.files import write_whole

_NUMBERS = ("row", "rank", "tied", "listed", "class_rank", "class_tied", "class_listed")
RANK_SCHEMA = pl.Schema(
    {"ranker": pl.String(), "user": pl.String(), "target": pl.String(), "class": pl.String()}
    | dict.fromkeys(_NUMBERS, pl.UInt32())
)
"""`class` is `known` for targets with training interactions, else `new`; numbers are those of `PREDICTION_SCHEMA`."""


def coded(predictions: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return predictions with numbers in place of users and targets, so that no data are passed on; item → number."""
    numbers = predictions.with_columns(pl.col(c).rank("dense").cast(pl.String) for c in ("user_id", "target"))
    return numbers, dict(zip(predictions["target"], numbers["target"], strict=True))


def write_ranks(predictions: pl.DataFrame, known_items: Collection[str], path: Path) -> pl.DataFrame:
    """Write the ranks of predictions to `path` (Parquet), and return them as a frame of `RANK_SCHEMA`.

    `known_items` have training interactions. Texts and scores are omitted, so that a row takes a few bytes.
    """
    known = pl.col("target").is_in(list(known_items))
    ranks = predictions.with_columns(
        pl.col("user_id").alias("user"), pl.when(known).then(pl.lit("known")).otherwise(pl.lit("new")).alias("class")
    )
    ranks = ranks.select(RANK_SCHEMA.names()).cast(RANK_SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: ranks.write_parquet(part, compression="zstd", compression_level=19))
    return ranks


def evaluate_ranks(
    path: Path,
    *,
    audit: Audit | NoAudit,
    ks: Sequence[int] = (1, 5, 10),
    compare: str | Sequence[tuple[str, str]] | None = None,
) -> Evaluation:
    """Return the evaluation of the ranks in a file of `write_ranks`, as `evaluate_predictions` does.

    Raise DataError if the file is missing or damaged.
    """
    try:
        ranks = read_parquet(path).select(RANK_SCHEMA.names()).cast(RANK_SCHEMA)
    except (*UNREADABLE, FileNotFoundError) as e:
        raise DataError(f"{path}: not a file of ranks ({first_words(e)}); write it again with write_ranks") from None
    frame = ranks.rename({"user": "user_id"})
    # No candidates, no scores and no texts.
    missing = [pl.lit(None, of).alias(name) for name, of in PREDICTION_SCHEMA.items() if name not in frame.columns]
    known = set(ranks.filter(pl.col("class") == "known")["target"])
    frame = frame.with_columns(missing).with_columns(pl.col("candidates").fill_null([]))
    return evaluate_predictions(frame, audit=audit, ks=ks, compare=compare, known_items=known)
