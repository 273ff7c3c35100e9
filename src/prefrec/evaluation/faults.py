"""Faults of a protocol: rows of a split that no honest split of the log has."""

from __future__ import annotations

import math
from collections import Counter

import polars as pl

from prefrec.data import PreparedData, RankingExample
from prefrec.data.types import LOG_SCHEMA, PARTS
from prefrec.evaluation import shortcuts

MOST_FAULTY = 0.01
"""Largest share of rows, or of negatives, with a fault of the protocol that is not told."""


def protocol_faults(data: PreparedData, split: str = "test") -> list[str]:
    """Return what is wrong with the rows of a split and what training knows of them, with its share of the rows.

    Shares of up to `MOST_FAULTY`, and single rows, may be chance and are not told. Repeated rows need histories of
    three items, and a target may be in the user's training log as often as training users take an item again.
    """
    rows, log, later = data.split(split), data.train_interactions, data.held_out_interactions
    later = log.clear() if later is None else later
    own, own_later = (f.filter(pl.col("user_id").is_in({e.user_id for e in rows})) for f in (log, later))
    times = pl.concat([own.select(*LOG_SCHEMA), own_later.select(*LOG_SCHEMA)]).group_by("user_id", "item_id")
    known = times.agg(first=pl.min("timestamp"), last=pl.max("timestamp")).drop_nulls()
    spans = {(user, item): span for user, item, *span in known.iter_rows()}
    named = (i for part in PARTS for e in data.split(part) for i in (*e.history, e.target))
    taken = {*log["item_id"].unique(), *later["item_id"].unique(), *named}

    def is_late(e: RankingExample) -> bool:
        end = spans.get((e.user_id, e.target), (0, math.inf))[1]
        return any(spans.get((e.user_id, i), (-math.inf, 0))[0] > end for i in e.history)

    long = [(e.user_id, e.history, e.target) for e in rows if len(e.history) > 2]
    faults = {
        "candidates that nobody ever took": [i not in taken for e in rows for i in e.candidates if i != e.target],
        # Without later interactions of these users the data have no order, and their times say nothing.
        "histories with items that were taken after the target": [is_late(e) for e in rows if len(later)],
        "rows that occur twice": [n > 0 for count in Counter(long).values() for n in range(count)],
    }
    allowed, told = {}, "targets that the training log has for their user"
    if split != "train":
        pairs, trained = (
            set(own.select("user_id", "item_id").iter_rows()),
            {(e.history, e.target) for e in data.train},
        )
        faults[told] = [(e.user_id, e.target) in pairs and e.target not in e.history for e in rows]
        # Training users tell how often an item is taken again, up to three standard errors.
        again = shortcuts.repeats(log, len(log))
        chance = float(again.mean()) if len(again) else 0.0
        allowed[told] = MOST_FAULTY + chance + 3 * math.sqrt(chance * (1 - chance) / max(1, len(again)))
        faults["rows that are training rows, too"] = [row[1:] in trained for row in long]
        if data.protocol.get("split") == "user":
            users = set(own["user_id"])
            faults["users of training, in spite of a split by user"] = [e.user_id in users for e in rows]
    shares = {name: sum(found) / len(found) for name, found in faults.items() if sum(found) > 1}
    return [f"{name} ({share:.1%})" for name, share in shares.items() if share > allowed.get(name, MOST_FAULTY)]
