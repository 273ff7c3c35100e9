"""Audit of candidate lists: can they be ranked without knowing the user?

Shortcuts (`prefrec.evaluation.shortcuts`) are scored on the lists under test, beside three references: random
(exactly 1/C), popularity, and last-item co-occurrence, the simplest honest use of the history. HR@1 is taken in
expectation over ties.

**When is a shortcut a leak?** When it beats each of its rivals: the gain, a paired difference on the same rows, has
an interval (bootstrap over users) above 0. The level is 95% for all shortcuts together (1 − 0.05/m for each of m,
Bonferroni), so an audit of clean lists raises a false alarm in at most one of twenty cases. The rivals are what an
honest ranker could do with the same information. Otherwise popularity, which uniform candidates reward, would be
mistaken for a leak:

- all: random;
- target position: random only, since a position says nothing about an item;
- position lookup, list lookup: the same rule learnt from shuffled lists, in which targets are independent of
  positions (or negatives), the luckiest of `SHUFFLES` draws. That rule still knows which items were targets, that is
  popularity;
- title length: popularity;
- least popular first: popularity, which has the same counts. If negatives are drawn by popularity, the rule wins by
  the drawing itself, and the verdict says so. If it only beats random, the verdict names it but does not call it a
  leak: a target's own interaction is missing from the counts, which reveals rare targets in some lists;
- in the history (candidates in the shown history first): what users who take items again give it, the luckiest of
  `SHUFFLES` draws of training users, by whether their last interaction repeats an earlier one;
- not in the history: popularity and co-occurrence, so that a few negatives in the history by chance are not a leak;
- id order and common order (`prefrec.evaluation.common_order`), which see the last history item: popularity and
  co-occurrence. Ids often follow the date of an item or of its first user, so their order beats random in honest data
  too, but not these two.

Popularity itself is never a leak; if it beats random, the audit notes that the lists reward it. With fewer than
`MIN_USERS` users nothing is called a leak, because a bootstrap over few users is unreliable. A rule without enough
data to learn from (`MIN_LEARN`), or with such a rival, counts as not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.common_order import agreement, common_order
from prefrec.evaluation.intervals import RESAMPLES, Interval, bootstrap_means, interval_of
from prefrec.evaluation.metrics import expected_hits
from prefrec.evaluation.shortcuts import Lists
from prefrec.rankers.reference import CooccurrenceRanker, PopularityRanker

MIN_USERS = 20
"""Least number of users under test to call anything a leak."""

MIN_LEARN = 20
"""Least number of rows, and of training interactions, to try a rule that learns from them."""

SHUFFLES = 5
"""Number of shuffled lists; a lookup must beat the luckiest of them."""

MAX_LEARN_ROWS = 100_000
"""Largest number of rows a shortcut learns from; of more rows, a random sample is taken."""

LEAST_POPULAR = "least popular first"

_REWARDED = "rewarded by the lists"

# Explanation of a leak, for rules whose name does not explain it.
_MEANINGS = {
    LEAST_POPULAR: "The negatives are more popular than the targets: a property of the drawing, as where "
    "negatives are drawn by popularity; hold rankers against this HR@1, not against chance.",
    "in the history": "Targets stand in the shown history more often than training users take an item again.",
    "not in the history": "Negatives come from the shown history.",
}

Hits = dict[str, NDArray[np.float64]]
"""Name → expected hits [B]."""


@dataclass(frozen=True)
class AuditRow:
    """One line of the audit.

    Attributes:
        name: of the shortcut or reference.
        hr: its HR@1, with the 95% interval.
        leak: True if it beats all its rivals.
        against: the rival with the smallest gain (by the interval's low end); None for references.
        gain: HR@1 over that rival, with the family-wise interval.
        learnt_from: the split it learnt from; "" for rules without learning.
        note: additional information, or the reason why a rule was not tried.
        tried: False if there was too little to learn from; `hr` is then meaningless.
    """

    name: str
    hr: Interval
    leak: bool = False
    against: str | None = None
    gain: Interval | None = None
    learnt_from: str = ""
    note: str = ""
    tried: bool = True

    @property
    def finding(self) -> str:
        """`leak`, `no leak`, `reference` or `not tried`."""
        if not self.tried:
            return "not tried"
        return "leak" if self.leak else "no leak" if self.against else "reference"


@dataclass(frozen=True)
class Audit:
    """The result of an audit, with references first and then shortcuts."""

    rows: list[AuditRow]

    @property
    def leaks(self) -> list[AuditRow]:
        """The shortcuts that beat what they should not."""
        return [r for r in self.rows if r.leak]

    @property
    def untried(self) -> list[AuditRow]:
        """The rules that had too little to learn from."""
        return [r for r in self.rows if not r.tried]

    def row(self, name: str) -> AuditRow:
        """Return the row of that name."""
        return next(r for r in self.rows if r.name == name)

    @property
    def verdict(self) -> str:
        """The result in words, mostly one sentence."""
        n, users = self.rows[0].hr.n, self.rows[0].hr.users
        if users < MIN_USERS:
            return (
                f"Audit: {n} lists of {users} users are too few to tell a leak from luck ({MIN_USERS} users needed)."
            )
        missing = self._missing()
        if self.leaks:
            leaks = ", ".join(
                f"{r.name} (HR@1 {r.hr.mean:.3f}, chance {self.rows[0].hr.mean:.3f})" for r in self.leaks
            )
            many = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            sentences = [f"Audit: {many} in {n} lists, ranked without knowing what the user likes: {leaks}."]
            sentences += [_MEANINGS[r.name] for r in self.leaks if r.name in _MEANINGS]
            return " ".join([*sentences, f"Not tried: {missing}."] if missing else sentences)
        if missing:
            return f"Audit: incomplete for {n} lists. Not tried: {missing}. The rules that were tried find nothing."
        chance = self.rows[0].hr.mean
        rewarded = [
            f"; {r.name} is {_REWARDED} (HR@1 {r.hr.mean:.3f}, chance {chance:.3f})"
            + (", a property of the drawing and not of taste" if r.name == LEAST_POPULAR else "")
            for r in self.rows
            if r.note == _REWARDED
        ]
        return f"Audit: no leak in {n} lists{''.join(rewarded)}."

    def _missing(self) -> str:
        """Return the rules that were not tried, by reason, as text; "" if all were tried."""
        names: dict[str, list[str]] = {}
        for r in self.untried:
            names.setdefault(r.note, []).append(r.name)
        return "; ".join(f"{', '.join(rules)} ({why})" for why, rules in names.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = [asdict(r) | {"hr": r.hr.to_json(), "gain": r.gain.to_json() if r.gain else None} for r in self.rows]
        leaks, untried = ([r.name for r in some] for some in (self.leaks, self.untried))
        return {"verdict": self.verdict, "leaks": leaks, "untried": untried, "rows": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Audit:
        """Return the audit of a value made by `to_json`."""
        rows = []
        for r in value["rows"]:
            gain = Interval.from_json(r["gain"]) if r["gain"] else None
            rows.append(AuditRow(**r | {"hr": Interval.from_json(r["hr"]), "gain": gain}))
        return cls(rows)


def audit_prepared(
    data: PreparedData, split: str = "test", learn_from: str = "train", seed: int = 0, resamples: int = RESAMPLES
) -> Audit:
    """Audit one split of prepared data, learning from another (`learn_from`)."""
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
    """Audit the candidate lists of `examples`.

    Args:
        learn: examples to learn positions, lists and directions from, at most `MAX_LEARN_ROWS` of them.
        train_interactions: for counts of popularity and co-occurrence.
        learnt_from: name of `learn` in the rows.
        seed: of sampling, shuffling and bootstrap.
    """
    if not examples:
        raise DataError("nothing to audit: the split holds no example")
    rng = np.random.default_rng(seed)
    if len(learn) > MAX_LEARN_ROWS:
        learnt_from = f"{learnt_from}, {MAX_LEARN_ROWS:,} of {len(learn):,} rows"
        learn = [learn[i] for i in rng.choice(len(learn), MAX_LEARN_ROWS, replace=False)]
    lists, seen = shortcuts.encode_lists(examples, catalogue), shortcuts.encode_lists(learn, catalogue)
    trial = _Trial(_references(lists, examples, train_interactions), _lacking(learn, learnt_from, train_interactions))
    _try_lookups(trial, lists, seen, learnt_from, rng)
    _try_titles(trial, lists, seen, catalogue, learnt_from)
    _try_popularity(trial, lists, examples, train_interactions)
    _try_histories(trial, lists, examples, train_interactions, rng)
    _try_orders(trial, lists, seen, catalogue, train_interactions, learnt_from)
    return Audit(_rows(trial, [e.user_id for e in examples], seed, resamples))


@dataclass
class _Trial:
    """The expected hits [B] of references, placebos and shortcuts, and the rivals of each shortcut.

    `lacking` has the reason why the `rows` or the `log` are not enough to learn from, if so.
    """

    references: Hits
    lacking: dict[str, str]
    placebos: Hits = field(default_factory=dict)
    tried: Hits = field(default_factory=dict)
    rivals: dict[str, list[str]] = field(default_factory=dict)
    learnt_from: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        name: str,
        hits: NDArray[np.float64],
        rivals: list[str],
        needs: Sequence[str],
        learnt_from: str = "",
        note: str = "",
    ) -> None:
        """Add a shortcut. `needs` names what it and its rivals learn from; random is always a rival."""
        self.tried[name], self.rivals[name] = hits, ["random", *rivals]
        self.learnt_from[name], self.notes[name] = learnt_from, note
        if why := [self.lacking[n] for n in needs if n in self.lacking]:
            self.untried[name] = " and ".join(why)


def _lacking(learn: Sequence[RankingExample], learnt_from: str, train_interactions: pl.DataFrame) -> dict[str, str]:
    lacking = {}
    if len(learn) < MIN_LEARN:
        lacking["rows"] = f"{len(learn)} rows of {learnt_from} to learn from"
    if len(train_interactions) < MIN_LEARN:
        lacking["log"] = f"{len(train_interactions)} training interactions"
    return lacking


def _references(lists: Lists, examples: Sequence[RankingExample], train_interactions: pl.DataFrame) -> Hits:
    scores = {
        "random": lists.masked(np.zeros(lists.codes.shape)),
        "popularity": PopularityRanker.fit(train_interactions).score(examples),
        "co-occurrence": CooccurrenceRanker.fit(train_interactions).score(examples),
    }
    return {name: expected_hits(s, lists.target) for name, s in scores.items()}


def _try_lookups(trial: _Trial, lists: Lists, seen: Lists, learnt_from: str, rng: np.random.Generator) -> None:
    """Try rules that learn from lists, each against the same rule learnt from shuffled lists."""
    # A bootstrap over test users does not show the luck in what was learnt, hence the luckiest of several shuffles.
    by_place = expected_hits(shortcuts.target_position(lists, seen), lists.target)
    trial.add("target position", by_place, [], ["rows"], learnt_from)
    moved = [shortcuts.shuffled_positions(seen, rng) for _ in range(SHUFFLES)]
    dealt = [shortcuts.shuffled_lists(seen, rng) for _ in range(SHUFFLES)]
    for name, rule, cuts in (
        ("position lookup", shortcuts.position_lookup, moved),
        ("list lookup", shortcuts.list_lookup, dealt),
    ):
        placebo = f"{name}, shuffled"
        draws = [expected_hits(rule(lists, cut), lists.target) for cut in cuts]
        trial.placebos[placebo] = max(draws, key=lambda hits: float(hits.mean()))
        trial.add(name, expected_hits(rule(lists, seen), lists.target), [placebo], ["rows"], learnt_from)


def _try_titles(trial: _Trial, lists: Lists, seen: Lists, catalogue: Catalogue, learnt_from: str) -> None:
    scores = shortcuts.title_length(lists, seen, catalogue)
    trial.add("title length", expected_hits(scores, lists.target), ["popularity"], ["rows", "log"], learnt_from)


def _try_popularity(
    trial: _Trial, lists: Lists, examples: Sequence[RankingExample], train_interactions: pl.DataFrame
) -> None:
    """Try the least popular candidate, which negatives drawn by popularity reveal."""
    scores = lists.masked(-PopularityRanker.fit(train_interactions).score(examples))
    trial.add(LEAST_POPULAR, expected_hits(scores, lists.target), ["popularity"], ["log"])


def _try_histories(
    trial: _Trial,
    lists: Lists,
    examples: Sequence[RankingExample],
    train_interactions: pl.DataFrame,
    rng: np.random.Generator,
) -> None:
    """Try candidates that are in the shown history, and those that are not."""
    # Users may take an item again. The placebo hits with the rate at which random training users did so last.
    inside = shortcuts.in_history(lists, examples)
    again = shortcuts.repeats(train_interactions, max(len(e.history) for e in examples))
    chance, placebo = trial.references["random"], "repeats of training users"
    draws = [np.where(rng.choice(again, len(chance)), 1.0, chance) for _ in range(SHUFFLES if len(again) else 0)]
    trial.placebos[placebo] = max(draws, key=lambda hits: float(hits.mean()), default=chance)
    trial.add("in the history", expected_hits(inside, lists.target), [placebo], ["log"])
    outside = expected_hits(lists.masked(-inside), lists.target)
    trial.add("not in the history", outside, ["popularity", "co-occurrence"], ["log"])


def _try_orders(
    trial: _Trial,
    lists: Lists,
    seen: Lists,
    catalogue: Catalogue,
    train_interactions: pl.DataFrame,
    learnt_from: str,
) -> None:
    """Try the next candidate after the last history item, by id and in the common order of training histories.

    The note has the share of steps in the training histories that follow that order or its reverse.
    """
    rivals = ["popularity", "co-occurrence"]
    columns = shortcuts.id_keys(catalogue)
    orders = {"id order" if c == "item_id" else f"id order ({c})": (learnt_from, keys) for c, keys in columns.items()}
    orders["common order"] = ("histories", common_order(train_interactions, catalogue))
    for name, (source, keys) in orders.items():
        scores = shortcuts.next_in_order(lists, seen, keys)
        share = max(agreement(train_interactions, catalogue, k) for k in (keys, -keys))
        note = f"{share:.0%} of steps in this order"
        trial.add(name, expected_hits(scores, lists.target), rivals, ["rows", "log"], source, note)


def _rows(trial: _Trial, users: Sequence[str], seed: int, resamples: int) -> list[AuditRow]:
    """Return the rows with intervals, all from one set of resamples."""
    hits = trial.references | trial.placebos | trial.tried
    draws = bootstrap_means(np.stack(list(hits.values()), axis=1), users, resamples, seed)
    column = dict(zip(hits, draws.T, strict=True))
    size = (len(users), len(set(users)))

    def rate(name: str) -> Interval:
        return interval_of(float(hits[name].mean()), column[name], *size)

    def gain(name: str, rival: str, level: float = 0.95) -> Interval:
        return interval_of(float((hits[name] - hits[rival]).mean()), column[name] - column[rival], *size, level)

    rewarded = gain("popularity", "random").low > 0
    notes = {"popularity": _REWARDED if rewarded else ""}
    rows = [AuditRow(name, rate(name), note=notes.get(name, "")) for name in trial.references]
    if "log" in trial.lacking:
        rows[1:] = [replace(r, note=trial.lacking["log"], tried=False) for r in rows[1:]]
    for name in trial.tried:
        if name in trial.untried:
            rows.append(AuditRow(name, rate(name), note=trial.untried[name], tried=False))
            continue
        # Without this correction about one of five audits of clean lists would report a leak (nine rules at 2.5%).
        level = 1 - 0.05 / (len(trial.tried) - len(trial.untried))
        gains = {r: gain(name, r, level) for r in trial.rivals[name]}
        nearest = min(gains, key=lambda r: gains[r].low)
        leak = size[1] >= MIN_USERS and gains[nearest].low > 0
        note = _REWARDED if name == LEAST_POPULAR and not leak and gains["random"].low > 0 else trial.notes[name]
        rows.append(AuditRow(name, rate(name), leak, nearest, gains[nearest], trial.learnt_from[name], note))
    return rows
