"""Training lists for studies of what is new: no candidate that training does not know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.training.negatives import redraw_lists


def of_trained_items(
    rows: Sequence[RankingExample], data: PreparedData, log: pl.DataFrame, seed: int
) -> list[RankingExample]:
    """Training rows whose candidates all occur in training; whoever does not gives way to an item that does.

    Lists of prepared data are drawn from the whole catalogue. An item that first occurs after a cut in time would
    stand in those of training as an answer that is always wrong, and alignment would teach that new items are.

    Args:
        rows: training rows; their targets occur in `log`.
        data: what a user takes in any of its rows or interactions, earlier or later, does not come into a list.
        log: training interactions, which know the items that may be listed.
        seed: of the draws.

    Raises:
        DataError: a user leaves too few items of training to draw from.
    """
    known = set(log["item_id"].to_list())
    wanting = [e for e in rows if not known.issuperset(e.candidates)]
    catalogue = Catalogue(data.catalogue.frame.filter(pl.col("item_id").is_in(list(known))))
    drawn = redraw_lists(wanting, replace(data, catalogue=catalogue), "uniform", seed=seed, known=_taken(data))
    mended = (_mended(e, other.candidates, known) for e, other in zip(wanting, drawn, strict=True))
    return [e if known.issuperset(e.candidates) else next(mended) for e in rows]


def _mended(example: RankingExample, drawn: Sequence[str], known: Collection[str]) -> RankingExample:
    """The row with drawn items in the places of those that are not known."""
    spare = iter([i for i in drawn if i not in example.candidates])
    return replace(example, candidates=tuple(i if i in known else next(spare) for i in example.candidates))


def _taken(data: PreparedData) -> pl.DataFrame:
    """`user_id, item_id` of all that users take in any part of the data."""
    rows = (*data.train, *data.validation, *data.test)
    shown = {(e.user_id, item) for e in rows for item in (*e.history, e.target)}
    frame = pl.DataFrame(list(shown), schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    return pl.concat([data.train_interactions.select("user_id", "item_id"), frame])
