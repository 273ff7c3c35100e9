"""Audit of candidate lists: can they be ranked without knowing the user?

Shortcuts (`prefrec.evaluation.shortcuts`) are scored on the lists under test, beside three references: random
(exactly 1/C), popularity, and last-item co-occurrence, the simplest honest use of the history. HR@1 is taken in
expectation over ties.

**When is a shortcut a leak?** When it beats each of its rivals: the gain, a paired difference on the same rows, has
an interval over users above 0. The level is 95% for all shortcuts together (1 − 0.05/m for each of m, Bonferroni), so
at most one of twenty audits of clean lists raises a false alarm. The rivals are what an honest ranker could do with
the same information; popularity, which uniform candidates reward, is not a leak:

- all: random; for the target position nothing else, since a position says nothing about an item;
- position lookup, list lookup: the same rule learnt from lists in which targets are independent of positions (or
  negatives), the luckiest of `SHUFFLES` draws. It still knows which items were targets;
- title length, least popular first: popularity. If the latter only beats random, the verdict names it without a leak:
  a target's own interaction is missing from the counts, which reveals rare targets in some lists;
- in the history: users who take items again, the luckiest of `SHUFFLES` draws of training users, by whether their
  last interaction repeats an earlier one;
- not in the history, id order and common order (`shortcuts.common_order`): popularity and co-occurrence. A few
  negatives are in the history by chance, and ids often follow the date of an item or of its first user.

With fewer than `MIN_USERS` users nothing is called a leak. A rule without enough data to learn from (`MIN_LEARN`), or
with such a rival, counts as not tried. Of prepared data the protocol is looked at, too (`protocol_faults`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.data.types import LOG_SCHEMA, PARTS
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.intervals import Interval, Means, PairedDifference, Result, plain
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.shortcuts import Lists
from prefrec.rankers.reference import CooccurrenceRanker, PopularityRanker

MIN_USERS = 20
"""Least number of users under test to call anything a leak."""
MIN_LEARN = 20
"""Least number of rows, and of training interactions, to try a rule that learns from them."""
SHUFFLES = 5
"""Number of shuffled lists; a lookup must beat the luckiest of them."""
MOST_FAULTY = 0.01
"""Largest share of rows, or of negatives, with a fault of the protocol that is not told."""
MAX_LEARN_ROWS = 100_000
"""Largest number of rows a shortcut learns from; of more rows, a random sample is taken."""
LEAST_POPULAR = "least popular first"
ROWS, LOG = "rows", "log"
_REWARDED = "rewarded by the lists"
# Explanation of a leak, for rules whose name does not explain it.
_MEANINGS = {
    LEAST_POPULAR: "The negatives are more popular than the targets: a property of the drawing, for example of "
    "negatives drawn by popularity. Compare rankers with this HR@1, not with chance.",
    "in the history": "Targets are in the shown history more often than training users take an item again.",
    "not in the history": "Negatives come from the shown history.",
}


@dataclass(frozen=True)
class AuditRow:
    """One line of the audit."""

    name: str  # of the shortcut or reference
    hr: Interval  # its HR@1, with the 95% interval
    leak: bool = False  # True if it beats all its rivals
    against: str | None = None  # the rival with the smallest gain (by the interval's low end); None for references
    gain: PairedDifference | None = None  # HR@1 over that rival, with the family-wise interval
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
class Audit(Result):
    """The result of an audit, with references first and then shortcuts, and the faults of the protocol in words."""

    rows: list[AuditRow]
    faults: list[str] = field(default_factory=list)

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
        found = f" Faults of the protocol: {'; '.join(self.faults)}." if self.faults else ""
        return self._verdict_on_lists() + found

    def _verdict_on_lists(self) -> str:
        random = self.rows[0].hr
        lists = f"{random.n} lists"
        if random.users < MIN_USERS:
            few = f"{lists} of {random.users} users are too few to tell a leak from luck"
            return f"Audit: {few} ({MIN_USERS} users needed)."

        def with_rate(row: AuditRow, words: str = "") -> str:
            return f"{row.name}{words} (HR@1 {row.hr.mean:.3f}, chance {random.mean:.3f})"

        notes = dict.fromkeys(r.note for r in self.untried)
        missing = "; ".join(f"{', '.join(r.name for r in self.untried if r.note == n)} ({n})" for n in notes)
        if self.leaks:
            count = "a leak" if len(self.leaks) == 1 else f"{len(self.leaks)} leaks"
            leaks = ", ".join(map(with_rate, self.leaks))
            sentences = [f"Audit: {count} in {lists}, ranked without knowing what the user likes: {leaks}."]
            sentences += [_MEANINGS[r.name] for r in self.leaks if r.name in _MEANINGS]
            return " ".join([*sentences, f"Not tried: {missing}."] if missing else sentences)
        if missing:
            return f"Audit: incomplete for {lists}. Not tried: {missing}. The rules that were tried find nothing."
        drawing = {LEAST_POPULAR: ", a property of the drawing and not of taste"}
        rewarded = [r for r in self.rows if r.note == _REWARDED]
        shown = "".join(f"; {with_rate(r, f' is {_REWARDED}')}{drawing.get(r.name, '')}" for r in rewarded)
        return f"Audit: no leak in {lists}{shown}."

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        leaks, untried = ([r.name for r in some] for some in (self.leaks, self.untried))
        lists = {"verdict": self.verdict, "leaks": leaks, "untried": untried, "faults": self.faults}
        return lists | {"rows": plain(self.rows)}


def audit_prepared(data: PreparedData, split: str = "test", learn_from: str = "train", seed: int = 0) -> Audit:
    """Audit one split of prepared data, learning from another (`learn_from`)."""
    if learn_from == split:
        raise DataError(f"an audit of the {split} lists cannot learn from the {split} lists")
    rows, learn, log = data.split(split), data.split(learn_from), data.train_interactions
    found = audit_lists(rows, learn, data.catalogue, log, learnt_from=learn_from, seed=seed)
    return replace(found, faults=protocol_faults(data, split))


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


def audit_lists(
    examples: Sequence[RankingExample],
    learn: Sequence[RankingExample],
    catalogue: Catalogue,
    train_interactions: pl.DataFrame,
    *,
    learnt_from: str = "train",
    seed: int = 0,
) -> Audit:
    """Audit the candidate lists of `examples`.

    Args:
        learn: examples to learn positions, lists and directions from, at most `MAX_LEARN_ROWS` of them.
        train_interactions: for counts of popularity and co-occurrence.
        learnt_from: name of `learn` in the rows.
        seed: of sampling and shuffling.
    """
    if not examples:
        raise DataError("nothing to audit: the split holds no example")
    rng = np.random.default_rng(seed)
    if len(learn) > MAX_LEARN_ROWS:
        learnt_from = f"{learnt_from}, {MAX_LEARN_ROWS:,} of {len(learn):,} rows"
        learn = [learn[i] for i in rng.choice(len(learn), MAX_LEARN_ROWS, replace=False)]
    lists, seen = shortcuts.encode_lists(examples, catalogue), shortcuts.encode_lists(learn, catalogue)
    few = {
        ROWS: f"{len(learn)} rows of {learnt_from} to learn from" if len(learn) < MIN_LEARN else "",
        LOG: f"{len(train_interactions)} training interactions" if len(train_interactions) < MIN_LEARN else "",
    }
    popularity = PopularityRanker.fit(train_interactions).score(examples)
    references = {
        "random": lists.hits(lists.masked(np.zeros(lists.codes.shape))),
        "popularity": lists.hits(popularity),
        "co-occurrence": lists.hits(CooccurrenceRanker.fit(train_interactions).score(examples)),
    }
    rules, placebos = _lookups(lists, seen, rng)
    title_length = lists.hits(shortcuts.title_length(lists, seen, catalogue))
    rules["title length"] = _Rule(title_length, ["popularity"], [ROWS, LOG])
    # Negatives drawn by popularity are revealed by their high counts.
    rules[LEAST_POPULAR] = _Rule(lists.hits(lists.masked(-popularity)), ["popularity"], [LOG])
    in_history, repeats = _histories(lists, examples, train_interactions, rng)
    rules |= in_history | _orders(lists, seen, train_interactions, catalogue)
    hits = references | placebos | repeats | {name: rule.hits for name, rule in rules.items()}
    # A leak of these lists is one whichever items they hold, so the intervals are over users alone.
    means = Means(hits, [e.user_id for e in examples])
    return Audit(_rows(means, list(references), rules, few, learnt_from))


class _Rule(NamedTuple):
    """A shortcut under trial."""

    hits: Floats  # [B], expected
    rivals: list[str]  # beside random
    needs: list[str]  # what it and its rivals learn from: `ROWS`, `LOG`
    learnt_from: str = ""  # if not the rows
    note: str = ""


Trial = tuple[dict[str, _Rule], dict[str, Floats]]
"""Rules by name, and the expected hits [B] of rivals that are no rows of the audit."""


def _luckiest(draws: Iterable[Floats]) -> Floats:
    # An interval over test users does not show the luck in what was learnt, hence the luckiest of several.
    return max(draws, key=lambda hits: float(hits.mean()))


def _lookups(lists: Lists, seen: Lists, rng: np.random.Generator) -> Trial:
    """Return rules that learn from lists, each against the same rule learnt from shuffled lists."""
    rules = {"target position": _Rule(lists.hits(shortcuts.target_position(lists, seen)), [], [ROWS])}
    placebos = {}
    for name, rule, shuffled in (
        ("position lookup", shortcuts.position_lookup, shortcuts.shuffled_positions),
        ("list lookup", shortcuts.list_lookup, shortcuts.shuffled_lists),
    ):
        placebo = f"{name}, shuffled"
        placebos[placebo] = _luckiest(lists.hits(rule(lists, shuffled(seen, rng))) for _ in range(SHUFFLES))
        rules[name] = _Rule(lists.hits(rule(lists, seen)), [placebo], [ROWS])
    return rules, placebos


def _histories(
    lists: Lists, examples: Sequence[RankingExample], log: pl.DataFrame, rng: np.random.Generator
) -> Trial:
    """Return the rules for candidates that are in the shown history, and for those that are not."""
    # Users may take an item again. The placebo hits with the rate at which random training users did so last.
    again = shortcuts.repeats(log, max(len(e.history) for e in examples))
    chance, placebo = 1.0 / lists.lengths, "repeats of training users"
    draws = [np.where(rng.choice(again, len(chance)), 1.0, chance) for _ in range(SHUFFLES if len(again) else 0)]
    inside = shortcuts.in_history(lists, examples)
    outside = lists.hits(lists.masked(-inside))
    rules = {
        "in the history": _Rule(lists.hits(inside), [placebo], [LOG]),
        "not in the history": _Rule(outside, ["popularity", "co-occurrence"], [LOG]),
    }
    return rules, {placebo: _luckiest(draws or [chance])}


def _orders(lists: Lists, seen: Lists, log: pl.DataFrame, catalogue: Catalogue) -> dict[str, _Rule]:
    """Return rules for the next candidate after the last history item, by id and in the common order of histories.

    The note has the share of steps in the training histories that follow that order or its reverse.
    """
    columns = shortcuts.id_keys(catalogue)
    orders = {"id order" if c == "item_id" else f"id order ({c})": keys for c, keys in columns.items()}
    orders["common order"] = shortcuts.common_order(log, catalogue)
    rules = {}
    for name, keys in orders.items():
        share = max(shortcuts.agreement(log, catalogue, k) for k in (keys, -keys))
        hits = lists.hits(shortcuts.next_in_order(lists, seen, keys))
        source, note = "histories" if name == "common order" else "", f"{share:.0%} of steps in this order"
        rules[name] = _Rule(hits, ["popularity", "co-occurrence"], [ROWS, LOG], source, note)
    return rules


def _rows(
    means: Means, references: list[str], rules: dict[str, _Rule], few: dict[str, str], learnt_from: str
) -> list[AuditRow]:
    """Return the rows with intervals. `few` says of `ROWS` and `LOG` that they are not enough, or ""."""
    rows = [AuditRow("random", means.mean("random"))]
    for name in references[1:]:
        note = _REWARDED if name == "popularity" and means.difference(name, "random").low > 0 else ""
        rows.append(AuditRow(name, means.mean(name), note=few[LOG] or note, tried=not few[LOG]))
    lacking = {name: " and ".join(few[n] for n in rule.needs if few[n]) for name, rule in rules.items()}
    # Without this correction about one of five audits of clean lists would report a leak (nine rules at 2.5%).
    level = 1 - 0.05 / max(1, sum(not reason for reason in lacking.values()))
    for name, rule in rules.items():
        if lacking[name]:
            rows.append(AuditRow(name, means.mean(name), note=lacking[name], tried=False))
            continue
        gains = {rival: means.difference(name, rival, level) for rival in ("random", *rule.rivals)}
        nearest = min(gains, key=lambda rival: gains[rival].low)
        leak = means.size[1] >= MIN_USERS and gains[nearest].low > 0
        note = _REWARDED if name == LEAST_POPULAR and not leak and gains["random"].low > 0 else rule.note
        source = rule.learnt_from or (learnt_from if ROWS in rule.needs else "")
        rows.append(AuditRow(name, means.mean(name), leak, nearest, gains[nearest], source, note))
    return rows
