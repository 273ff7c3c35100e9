"""Ranks of all examples in a small file, from which all tables can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from prefrec.data import PreparedData, RankingExample
from prefrec.data.parquet import UNREADABLE, read_parquet
from prefrec.errors import DataError, first_words
from prefrec.evaluation.evaluate import evaluate_predictions
from prefrec.evaluation.outcome import Evaluation
from prefrec.evaluation.predictions import PREDICTION_SCHEMA
from prefrec.evaluation.targets import NEW, target_classes
from prefrec.evaluation.verdict import Audit, NoAudit
from prefrec.files import write_whole

_NUMBERS = ("row", "rank", "tied", "listed", "class_rank", "class_tied", "class_listed")
_FACTS = pl.Schema({"class": pl.String(), "trained": pl.UInt32(), "known": pl.UInt32(), "day": pl.UInt32()})
"""Facts of an example that its ranker does not change."""
RANK_SCHEMA = pl.Schema(
    {"ranker": pl.String(), "user": pl.String(), "target": pl.String()}
    | _FACTS
    | dict.fromkeys(_NUMBERS, pl.UInt32())
)
"""Numbers are those of `PREDICTION_SCHEMA`; `class`, `trained`, `known` and `day` are those of `row_facts`."""
DAY = 86_400


def coded(predictions: pl.DataFrame) -> pl.DataFrame:
    """Return predictions with numbers in place of users and targets, so that no data are passed on."""
    return predictions.with_columns(pl.col(c).rank("dense").cast(pl.String) for c in ("user_id", "target"))


def row_facts(data: PreparedData, rows: Sequence[RankingExample], split: str) -> pl.DataFrame:
    """Return what is known of each example [B] of a split before it is ranked, by `row`.

    `class`, `trained` and `known` are those of `target_classes`: whether the target is in training, in validation
    only or new, and its numbers of interactions in training and before the examples. `day` is the number of whole
    days since the first of the examples, null without dates; absolute times would pass the data on.
    """
    facts = target_classes(data, rows, split).select("class", "trained", "known")
    times = pl.Series("day", [e.time for e in rows], pl.Int64)
    facts = facts.with_columns((times - times.min()) // DAY) if times.count() else facts.with_columns(times)
    return facts.cast(_FACTS).with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))


def write_ranks(predictions: pl.DataFrame, facts: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Write the ranks of predictions to `path` (Parquet), and return them as a frame of `RANK_SCHEMA`.

    `facts` are the `row_facts` of the examples. Texts and scores are omitted, so that a row takes a few bytes.
    """
    ranks = predictions.rename({"user_id": "user"}).join(facts, on="row", how="left", maintain_order="left")
    ranks = ranks.select(RANK_SCHEMA.names()).cast(RANK_SCHEMA)
    if ranks["class"].null_count():
        raise DataError(f"{path}: there are no facts of some rows; give row_facts of all examples")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: ranks.write_parquet(part, compression="zstd", compression_level=19))
    return ranks


def read_ranks(path: Path) -> pl.DataFrame:
    """Return the ranks in a file of `write_ranks`; raise DataError if the file is missing or damaged."""
    try:
        return read_parquet(path).select(RANK_SCHEMA.names()).cast(RANK_SCHEMA)
    except (*UNREADABLE, FileNotFoundError) as e:
        raise DataError(f"{path}: not a file of ranks ({first_words(e)}); write it again with write_ranks") from None


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
    ranks = read_ranks(path)
    frame = ranks.rename({"user": "user_id"})
    # No candidates, no scores and no texts.
    missing = [pl.lit(None, of).alias(name) for name, of in PREDICTION_SCHEMA.items() if name not in frame.columns]
    known = set(ranks.filter(pl.col("class") != NEW)["target"])
    frame = frame.with_columns(missing).with_columns(pl.col("candidates").fill_null([]))
    return evaluate_predictions(frame, audit=audit, ks=ks, compare=compare, known_items=known)
