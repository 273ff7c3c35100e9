"""The rows of an alignment whose rejected items the log tells of: rated low, or shown and not taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import PreparedData, RankingExample
from prefrec.data.preferences import impression_rows, rated_rows, with_opinions
from prefrec.errors import DataError
from prefrec.pipeline.recipe import AlignSection
from prefrec.training.negatives import redraw_lists


def log_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """Return all training rows that an alignment with `negatives_from: rated` or `impressions` can take.

    Raises:
        DataError: the log has no ratings, or no impressions.
    """
    return _rows(data, section, data.train_interactions, None, seed)


def log_validation_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """Return `eval_rows` such rows, in a random order, of what validation users took after the training part.

    Raises:
        DataError: there are none.
    """
    held_out, users = data.held_out_interactions, {e.user_id for e in data.validation}
    log = None if held_out is None else held_out.filter(pl.col("user_id").is_in(list(users)))
    rows = [] if log is None else _rows(data, section, log, data.train_interactions, seed)
    if not rows:
        raise DataError(
            f"align.{section.name}.eval_rows: no validation user has an item to choose and enough to reject after "
            "the training part; set it to 0, or hold out more with `split: time-share` in `data`"
        )
    order = np.random.default_rng((seed, 1)).permutation(len(rows))
    return [rows[i] for i in order[: section.eval_rows]]


def history_length(data: PreparedData) -> int:
    """Return how many items a prompt shows at most."""
    return int(data.protocol.get("config", {}).get("history_length", 10))


def _rows(
    data: PreparedData, section: AlignSection, log: pl.DataFrame, earlier: pl.DataFrame | None, seed: int
) -> list[RankingExample]:
    rejected = section.num_negatives - section.sampled_negatives
    shape: dict[str, Any] = {
        "earlier": earlier,
        "history_length": history_length(data),
        "min_history": int(data.protocol.get("config", {}).get("min_history", 1)),
        "seed": seed,
    }
    if section.negatives_from == "rated":
        judged = with_opinions(log, data.train_interactions, section.thresholds)
        rows = rated_rows(judged, rejected, **shape)
    else:
        rows = impression_rows(log, rejected, **shape)
    if not section.sampled_negatives:
        return rows
    return _with_sampled(rows, data, section.sampled_negatives, log, seed)


def _with_sampled(
    rows: Sequence[RankingExample], data: PreparedData, number: int, log: pl.DataFrame, seed: int
) -> list[RankingExample]:
    """Return the rows with `number` more candidates each, drawn uniformly among items that `log` does not tell of."""
    pair = ["user_id", "item_id"]
    known = [data.train_interactions.select(pair), log.select(pair)]
    if "impressions" in log.columns:
        known.append(log.select("user_id", item_id="impressions").explode("item_id").drop_nulls())
    drawn = redraw_lists(rows, data, "uniform", seed=seed, size=1 + number, known=pl.concat(known))
    rng, mixed = np.random.default_rng((seed, 5)), []
    for row, more in zip(rows, drawn, strict=True):
        listed = [*row.candidates, *(i for i in more.candidates if i != row.target)]
        mixed.append(replace(row, candidates=tuple(listed[i] for i in rng.permutation(len(listed)).tolist())))
    return mixed
