"""Audit of candidate lists: can they be ranked without knowing the user?

Shortcuts (`prefrec.evaluation.shortcuts`) are scored on the very lists under test, beside three references:
random (exactly 1/C), popularity, and last-item co-occurrence, the simplest honest use of the history. HR@1 is
taken in expectation over ties.

**When is a shortcut a leak?** When it beats each of its rivals: the gain, a paired difference on the same rows,
has an interval (bootstrap over users) above `MARGIN`. The level is 95% for the family of shortcuts, that is
1 − 0.05/m for each of m (Bonferroni), so that an audit of clean lists raises a false alarm in at most one case
of twenty. The rivals are what an honest ranker could do with the same information, so that popularity, which
uniform candidates reward, is not mistaken for a leak in disguise:

- all: random;
- target position, position lookup, list lookup: the same rule learnt from lists in which the tie between target
  and place (or negatives) has been cut by shuffling. What is left of the rule then is what it gets from which
  items were targets at all, that is from popularity;
- title length: popularity;
- id order, which sees the last history item: popularity and co-occurrence.

Popularity itself is never a leak; where it beats random, the audit notes that these candidates reward it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.intervals import RESAMPLES, Interval, bootstrap_means, interval_of
from prefrec.evaluation.metrics import expected_hits
from prefrec.evaluation.shortcuts import Lists
from prefrec.rankers.reference import CooccurrenceRanker, PopularityRanker

MARGIN = 0.0
"""Gain in HR@1 that a shortcut must exceed to be called a leak."""

MAX_LEARN_ROWS = 100_000
"""Rows a shortcut learns from; more are thinned out at random (with the seed)."""

Hits = dict[str, NDArray[np.float64]]
"""Name → expected hits [B]."""


@dataclass(frozen=True)
class AuditRow:
    """One line of the audit.

    Attributes:
        name: of the shortcut or reference.
        hr: its HR@1, with the 95% interval.
        leak: whether it beats all its rivals.
        against: the rival it beats by least (by the interval's low end); None for references.
        gain: HR@1 over that rival, with the family-wise interval.
        learnt_from: the split it learnt from, "" for rules without learning.
        note: what else to know.
    """

    name: str
    hr: Interval
    leak: bool = False
    against: str | None = None
    gain: Interval | None = None
    learnt_from: str = ""
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """What an audit found: `rows`, references first, then shortcuts."""

    rows: list[AuditRow]

    @property
    def leaks(self) -> list[AuditRow]:
        """The shortcuts that beat what they should not."""
        return [r for r in self.rows if r.leak]

    def row(self, name: str) -> AuditRow:
        """The row of that name."""
        return next(r for r in self.rows if r.name == name)

    @property
    def verdict(self) -> str:
        """One sentence."""
        n = self.rows[0].hr.n
        if self.leaks:
            found = ", ".join(
                f"{r.name} (HR@1 {r.hr.mean:.3f}, chance {self.rows[0].hr.mean:.3f})" for r in self.leaks
            )
            many = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            return f"Audit: {many} in {n} lists, ranked without knowing the user: {found}."
        notes = "; ".join(r.note for r in self.rows if r.note)
        return f"Audit: no leak in {n} lists" + (f"; {notes}." if notes else ".")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [asdict(r) | {"hr": r.hr.to_json(), "gain": r.gain.to_json() if r.gain else None} for r in self.rows]
        return {"verdict": self.verdict, "leaks": [r.name for r in self.leaks], "rows": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Audit:
        """The inverse of `to_json`."""
        return cls(
            [
                AuditRow(
                    **r
                    | {
                        "hr": Interval.from_json(r["hr"]),
                        "gain": Interval.from_json(r["gain"]) if r["gain"] else None,
                    }
                )
                for r in value["rows"]
            ]
        )


def audit_prepared(
    data: PreparedData, split: str = "test", learn_from: str = "train", seed: int = 0, resamples: int = RESAMPLES
) -> Audit:
    """The audit of one split of prepared data, learning from another (`learn_from`)."""
    if learn_from == split:
        raise DataError(f"an audit of the {split} lists cannot learn from the {split} lists")
    return audit_lists(
        data.split(split),
        data.split(learn_from),
        data.catalogue,
        data.train_interactions,
        learnt_from=learn_from,
        seed=seed,
        resamples=resamples,
    )


def audit_lists(
    examples: Sequence[RankingExample],
    learn: Sequence[RankingExample],
    catalogue: Catalogue,
    train_interactions: pl.DataFrame,
    *,
    learnt_from: str = "train",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Audit:
    """The audit of the lists of `examples`.

    Args:
        learn: examples from which positions, lists and directions are learnt, at most `MAX_LEARN_ROWS` of them.
        train_interactions: what popularity and co-occurrence are counted in.
        learnt_from: how `learn` is called in the rows.
        seed: of thinning, shuffling and bootstrap.
    """
    if not examples:
        raise DataError("nothing to audit: the split holds no example")
    rng = np.random.default_rng(seed)
    if len(learn) > MAX_LEARN_ROWS:
        learn = [learn[i] for i in rng.choice(len(learn), MAX_LEARN_ROWS, replace=False)]
    lists, seen = shortcuts.encode_lists(examples, catalogue), shortcuts.encode_lists(learn, catalogue)
    references = _references(lists, examples, train_interactions)
    tried, placebos = _shortcuts(lists, seen, catalogue, rng)
    users = [e.user_id for e in examples]
    return Audit(_rows(references, tried, placebos, users, learnt_from, seed, resamples))


def _references(lists: Lists, examples: Sequence[RankingExample], train_interactions: pl.DataFrame) -> Hits:
    scores = {
        "random": lists.masked(np.zeros(lists.codes.shape)),
        "popularity": PopularityRanker.fit(train_interactions).score(examples),
        "co-occurrence": CooccurrenceRanker.fit(train_interactions).score(examples),
    }
    return _hits(lists, scores)


def _shortcuts(lists: Lists, seen: Lists, catalogue: Catalogue, rng: np.random.Generator) -> tuple[Hits, Hits]:
    """Expected hits of the shortcuts, and of those that have one, the same learnt from shuffled lists."""
    moved, dealt = shortcuts.shuffled_positions(seen, rng), shortcuts.shuffled_lists(seen, rng)
    learnt: dict[str, tuple[Callable[[Lists, Lists], NDArray[np.float64]], Lists]] = {
        "target position": (shortcuts.target_position, moved),
        "position lookup": (shortcuts.position_lookup, moved),
        "list lookup": (shortcuts.list_lookup, dealt),
    }
    tried = {name: rule(lists, seen) for name, (rule, _) in learnt.items()}
    tried["id order"] = shortcuts.id_order(lists, seen, catalogue)
    tried["title length"] = shortcuts.title_length(lists, seen, catalogue)
    placebos = {name: rule(lists, cut) for name, (rule, cut) in learnt.items()}
    return _hits(lists, tried), _hits(lists, placebos)


def _hits(lists: Lists, scores: dict[str, NDArray[np.float64]]) -> Hits:
    return {name: expected_hits(s, lists.target) for name, s in scores.items()}


def _rows(
    references: Hits,
    tried: Hits,
    placebos: Hits,
    users: Sequence[str],
    learnt_from: str,
    seed: int,
    resamples: int,
) -> list[AuditRow]:
    """Rows with intervals from one set of resamples."""
    hits = references | tried | {f"{name}, shuffled": h for name, h in placebos.items()}
    draws = bootstrap_means(np.stack(list(hits.values()), axis=1), users, resamples, seed)
    column = dict(zip(hits, draws.T, strict=True))
    size = (len(users), len(set(users)))

    def gain(name: str, rival: str, level: float) -> Interval:
        return interval_of(float((hits[name] - hits[rival]).mean()), column[name] - column[rival], *size, level)

    rows = [AuditRow(n, interval_of(float(h.mean()), column[n], *size)) for n, h in references.items()]
    for name, h in tried.items():
        own = [f"{name}, shuffled"] if name in placebos else ["popularity"]
        rivals = ["random", *own, *(["co-occurrence"] if name == "id order" else [])]
        gains = {r: gain(name, r, 1 - 0.05 / len(tried)) for r in rivals}
        nearest = min(gains, key=lambda r: gains[r].low)
        rows.append(
            AuditRow(
                name,
                interval_of(float(h.mean()), column[name], *size),
                leak=gains[nearest].low > MARGIN,
                against=nearest,
                gain=gains[nearest],
                learnt_from=learnt_from,
            )
        )
    return rows
