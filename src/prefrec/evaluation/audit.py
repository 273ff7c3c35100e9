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
- id order and common order (`shortcuts.common_order`), which see the last history item: popularity and
  co-occurrence. Ids often follow the date of an item or of its first user, so their order beats random in honest data
  too, but not these two.

Popularity itself is never a leak; if it beats random, the audit notes that the lists reward it. With fewer than
`MIN_USERS` users nothing is called a leak, because a bootstrap over few users is unreliable. A rule without enough
data to learn from (`MIN_LEARN`), or with such a rival, counts as not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.intervals import RESAMPLES, Bootstrap, Interval, interval_of
from prefrec.evaluation.metrics import Floats, expected_hits
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
    LEAST_POPULAR: "The negatives are more popular than the targets: a property of the drawing, for example of "
    "negatives drawn by popularity. Compare rankers with this HR@1, not with chance.",
    "in the history": "Targets are in the shown history more often than training users take an item again.",
    "not in the history": "Negatives come from the shown history.",
}

Hits = dict[str, Floats]
"""Name → expected hits [B]."""


@dataclass(frozen=True)
class AuditRow:
    """One line of the audit."""

    name: str  # of the shortcut or reference
    hr: Interval  # its HR@1, with the 95% interval
    leak: bool = False  # True if it beats all its rivals
    against: str | None = None  # the rival with the smallest gain (by the interval's low end); None for references
    gain: Interval | None = None  # HR@1 over that rival, with the family-wise interval
    learnt_from: str = ""  # the split it learnt from; "" for rules without learning
    note: str = ""  # additional information, or the reason why a rule was not tried
    tried: bool = True  # False if there was too little to learn from; `hr` is then meaningless

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
        random = self.rows[0].hr
        lists = f"{random.n} lists"
        if random.users < MIN_USERS:
            few = f"{lists} of {random.users} users are too few to tell a leak from luck"
            return f"Audit: {few} ({MIN_USERS} users needed)."

        def with_rate(row: AuditRow, words: str = "") -> str:
            return f"{row.name}{words} (HR@1 {row.hr.mean:.3f}, chance {random.mean:.3f})"

        reasons: dict[str, list[str]] = {}
        for r in self.untried:
            reasons.setdefault(r.note, []).append(r.name)
        missing = "; ".join(f"{', '.join(rules)} ({reason})" for reason, rules in reasons.items())
        if self.leaks:
            count = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            leaks = ", ".join(map(with_rate, self.leaks))
            sentences = [f"Audit: {count} in {lists}, ranked without knowing what the user likes: {leaks}."]
            sentences += [_MEANINGS[r.name] for r in self.leaks if r.name in _MEANINGS]
            return " ".join([*sentences, f"Not tried: {missing}."] if missing else sentences)
        if missing:
            return f"Audit: incomplete for {lists}. Not tried: {missing}. The rules that were tried find nothing."
        rewarded = [
            f"; {with_rate(r, f' is {_REWARDED}')}"
            + (", a property of the drawing and not of taste" if r.name == LEAST_POPULAR else "")
            for r in self.rows
            if r.note == _REWARDED
        ]
        return f"Audit: no leak in {lists}{''.join(rewarded)}."

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
    rows, learn, log = data.split(split), data.split(learn_from), data.train_interactions
    return audit_lists(rows, learn, data.catalogue, log, learnt_from=learn_from, seed=seed, resamples=resamples)


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
    trial = _Trial(lists, seen, train_interactions, learnt_from)
    trial.try_lookups(rng)
    trial.add("title length", shortcuts.title_length(lists, seen, catalogue), ["popularity"], ["rows", "log"])
    popularity = PopularityRanker.fit(train_interactions).score(examples)
    # Negatives drawn by popularity are revealed by their high counts.
    trial.add(LEAST_POPULAR, lists.masked(-popularity), ["popularity"], ["log"])
    trial.try_histories(examples, rng)
    trial.try_orders(catalogue)
    scores = {
        "random": lists.masked(np.zeros(lists.codes.shape)),
        "popularity": popularity,
        "co-occurrence": CooccurrenceRanker.fit(train_interactions).score(examples),
    }
    references = {name: expected_hits(s, lists.target) for name, s in scores.items()}
    return Audit(_rows(trial, references, [e.user_id for e in examples], seed, resamples))


@dataclass(frozen=True)
class _Rule:
    """A shortcut under trial: its rivals beside random, and the reason why it was not tried, if so."""

    rivals: list[str]
    untried: str
    learnt_from: str
    note: str


@dataclass
class _Trial:
    """The shortcuts under trial, and their expected hits [B] and those of placebos."""

    lists: Lists
    seen: Lists
    log: pl.DataFrame
    learnt_from: str
    rules: dict[str, _Rule] = field(default_factory=dict)
    hits: Hits = field(default_factory=dict)
    placebos: Hits = field(default_factory=dict)

    def lacking(self, need: str) -> str:
        """Return why the `rows` or the `log` are not enough to learn from; "" if they are."""
        rows, steps = len(self.seen.target), len(self.log)
        if need == "rows":
            return f"{rows} rows of {self.learnt_from} to learn from" if rows < MIN_LEARN else ""
        return f"{steps} training interactions" if steps < MIN_LEARN else ""

    def add(
        self, name: str, scores: Floats, rivals: list[str], needs: list[str], source: str = "", note: str = ""
    ) -> None:
        """Add a shortcut with its scores [B, C]. `needs` names what it and its rivals learn from."""
        untried = " and ".join(filter(None, map(self.lacking, needs)))
        source = source or (self.learnt_from if "rows" in needs else "")
        self.rules[name] = _Rule(rivals, untried, source, note)
        self.hits[name] = expected_hits(scores, self.lists.target)

    def try_lookups(self, rng: np.random.Generator) -> None:
        """Try rules that learn from lists, each against the same rule learnt from shuffled lists."""
        self.add("target position", shortcuts.target_position(self.lists, self.seen), [], ["rows"])
        moved = [shortcuts.shuffled_positions(self.seen, rng) for _ in range(SHUFFLES)]
        dealt = [shortcuts.shuffled_lists(self.seen, rng) for _ in range(SHUFFLES)]
        for name, rule, cuts in (
            ("position lookup", shortcuts.position_lookup, moved),
            ("list lookup", shortcuts.list_lookup, dealt),
        ):
            # A bootstrap over test users does not show the luck in what was learnt, hence the luckiest of several.
            draws = [expected_hits(rule(self.lists, cut), self.lists.target) for cut in cuts]
            self.placebos[f"{name}, shuffled"] = max(draws, key=lambda hits: float(hits.mean()))
            self.add(name, rule(self.lists, self.seen), [f"{name}, shuffled"], ["rows"])

    def try_histories(self, examples: Sequence[RankingExample], rng: np.random.Generator) -> None:
        """Try candidates that are in the shown history, and those that are not."""
        # Users may take an item again. The placebo hits with the rate at which random training users did so last.
        again = shortcuts.repeats(self.log, max(len(e.history) for e in examples))
        chance = 1.0 / self.lists.lengths
        draws = [np.where(rng.choice(again, len(chance)), 1.0, chance) for _ in range(SHUFFLES if len(again) else 0)]
        placebo = "repeats of training users"
        self.placebos[placebo] = max(draws, key=lambda hits: float(hits.mean()), default=chance)
        inside = shortcuts.in_history(self.lists, examples)
        self.add("in the history", inside, [placebo], ["log"])
        self.add("not in the history", self.lists.masked(-inside), ["popularity", "co-occurrence"], ["log"])

    def try_orders(self, catalogue: Catalogue) -> None:
        """Try the next candidate after the last history item, by id and in the common order of training histories.

        The note has the share of steps in the training histories that follow that order or its reverse.
        """
        columns = shortcuts.id_keys(catalogue)
        orders = {"id order" if c == "item_id" else f"id order ({c})": keys for c, keys in columns.items()}
        orders["common order"] = shortcuts.common_order(self.log, catalogue)
        for name, keys in orders.items():
            share = max(shortcuts.agreement(self.log, catalogue, k) for k in (keys, -keys))
            self.add(
                name,
                shortcuts.next_in_order(self.lists, self.seen, keys),
                ["popularity", "co-occurrence"],
                ["rows", "log"],
                "histories" if name == "common order" else "",
                f"{share:.0%} of steps in this order",
            )


def _rows(trial: _Trial, references: Hits, users: Sequence[str], seed: int, resamples: int) -> list[AuditRow]:
    """Return the rows with intervals, all from one set of resamples."""
    hits = references | trial.placebos | trial.hits
    bootstrap = Bootstrap(hits, users, resamples, seed)

    def gain(name: str, rival: str, level: float = 0.95) -> Interval:
        draws = bootstrap.draws[name] - bootstrap.draws[rival]
        return interval_of(float((hits[name] - hits[rival]).mean()), draws, *bootstrap.size, level)

    rows = [AuditRow("random", bootstrap.mean("random"))]
    for name in list(references)[1:]:
        note = _REWARDED if name == "popularity" and gain(name, "random").low > 0 else ""
        lacking = trial.lacking("log")
        rows.append(AuditRow(name, bootstrap.mean(name), note=lacking or note, tried=not lacking))
    # Without this correction about one of five audits of clean lists would report a leak (nine rules at 2.5%).
    level = 1 - 0.05 / max(1, sum(not rule.untried for rule in trial.rules.values()))
    for name, rule in trial.rules.items():
        if rule.untried:
            rows.append(AuditRow(name, bootstrap.mean(name), note=rule.untried, tried=False))
            continue
        gains = {rival: gain(name, rival, level) for rival in ("random", *rule.rivals)}
        nearest = min(gains, key=lambda rival: gains[rival].low)
        leak = bootstrap.size[1] >= MIN_USERS and gains[nearest].low > 0
        note = _REWARDED if name == LEAST_POPULAR and not leak and gains["random"].low > 0 else rule.note
        rows.append(AuditRow(name, bootstrap.mean(name), leak, nearest, gains[nearest], rule.learnt_from, note))
    return rows
