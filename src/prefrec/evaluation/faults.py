"""Faults of a protocol: examples that a correct split of the log cannot have."""

from __future__ import annotations

import math
from collections import Counter

import polars as pl

from prefrec.data import PreparedData, RankingExample
from prefrec.data.types import LOG_SCHEMA, SPLITS
from prefrec.evaluation import shortcuts

MOST_FAULTY = 0.01
"""Largest share of examples, or of negatives, with a fault that is not reported."""


def protocol_faults(data: PreparedData, split: str = "test") -> list[str]:
    """Return the faults of a split's examples in words, with the share of examples that have each.

    Shares of up to `MOST_FAULTY`, and single examples, may be chance and are not reported. Repeated examples count
    from three history items on. A target may be in its user's training log as often as training users repeat an item.
    """
    rows = data.split(split)
    log = data.train_interactions
    later = data.held_out_interactions
    later = log.clear() if later is None else later
    before, after = (f.filter(pl.col("user_id").is_in({e.user_id for e in rows})) for f in (log, later))
    times = pl.concat([before.select(*LOG_SCHEMA), after.select(*LOG_SCHEMA)]).group_by("user_id", "item_id")
    known = times.agg(first=pl.min("timestamp"), last=pl.max("timestamp")).drop_nulls()
    spans = {(user, item): span for user, item, *span in known.iter_rows()}
    named = (i for part in SPLITS for e in data.split(part) for i in (*e.history, e.target))
    known_items = {*log["item_id"].unique(), *later["item_id"].unique(), *named}

    def is_late(e: RankingExample) -> bool:
        end = spans.get((e.user_id, e.target), (0, math.inf))[1]
        return any(spans.get((e.user_id, i), (-math.inf, 0))[0] > end for i in e.history)

    long = [(e.user_id, e.history, e.target) for e in rows if len(e.history) > 2]
    faults = {
        "candidates without any interaction": [
            i not in known_items for e in rows for i in e.candidates if i != e.target
        ],
        # Without later interactions of these users the data have no order, and their times say nothing.
        "histories with items from after the target": [is_late(e) for e in rows if len(later)],
        "examples that occur twice": [n > 0 for count in Counter(long).values() for n in range(count)],
    }
    allowed, revealed = {}, "targets that are in their user's training log"
    if split != "train":
        pairs = {*before.select("user_id", "item_id").iter_rows()}
        trained = {(e.history, e.target) for e in data.train}
        faults[revealed] = [(e.user_id, e.target) in pairs and e.target not in e.history for e in rows]
        # Training users show how often an item is repeated, up to three standard errors.
        again = shortcuts.repeats(log, len(log))
        chance = float(again.mean()) if len(again) else 0.0
        allowed[revealed] = MOST_FAULTY + chance + 3 * math.sqrt(chance * (1 - chance) / max(1, len(again)))
        faults["examples that are also training examples"] = [row[1:] in trained for row in long]
        if data.protocol.get("split") == "user":
            users = set(before["user_id"])
            faults["users who are also in training, despite a split by user"] = [e.user_id in users for e in rows]
    shares = {name: sum(faulty) / len(faulty) for name, faulty in faults.items() if sum(faulty) > 1}
    return [f"{name} ({share:.1%})" for name, share in shares.items() if share > allowed.get(name, MOST_FAULTY)]
