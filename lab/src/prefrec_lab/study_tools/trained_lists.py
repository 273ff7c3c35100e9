"""Training candidate sets for studies of new items: every candidate has training interactions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.training.negatives import resample_negatives


def trained_items_only(
    rows: Sequence[RankingExample], data: PreparedData, log: pl.DataFrame, seed: int
) -> list[RankingExample]:
    """Return training rows whose candidates all occur in training; other candidates are replaced.

    Lists of prepared data are drawn from the whole catalogue. An item that first occurs after a cut in time would
    always be a wrong answer in training lists, and alignment would teach that new items are wrong.

    Args:
        rows: training rows; their targets occur in `log`.
        data: a list gets no item that its user takes in any row or interaction of the data.
        log: training interactions, which know the items that may be listed.

    Raises:
        DataError: a user leaves too few items of training to draw from.
    """
    known = set(log["item_id"].to_list())
    incomplete = [e for e in rows if not known.issuperset(e.candidates)]
    catalogue = Catalogue(data.catalogue.frame.filter(pl.col("item_id").is_in(list(known))))
    drawn = resample_negatives(
        incomplete, replace(data, catalogue=catalogue), "uniform", seed=seed, excluded=_taken(data)
    )
    repaired = (_repaired(e, other.candidates, known) for e, other in zip(incomplete, drawn, strict=True))
    return [e if known.issuperset(e.candidates) else next(repaired) for e in rows]


def _repaired(example: RankingExample, drawn: Sequence[str], known: Collection[str]) -> RankingExample:
    """Return the row with drawn items in place of unknown ones."""
    replacements = iter([i for i in drawn if i not in example.candidates])
    return replace(example, candidates=tuple(i if i in known else next(replacements) for i in example.candidates))


def _taken(data: PreparedData) -> pl.DataFrame:
    """Return `user_id, item_id` of all that users take in any part of the data."""
    rows = (*data.train, *data.validation, *data.test)
    shown = {(e.user_id, item) for e in rows for item in (*e.history, e.target)}
    frame = pl.DataFrame(list(shown), schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    return pl.concat([data.train_interactions.select("user_id", "item_id"), frame])
