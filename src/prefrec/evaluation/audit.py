"""Audit candidate sets: can they be ranked without knowing the user?

Shortcuts (`prefrec.evaluation.shortcuts`) are compared with baselines on the candidate sets under test: random
(exactly 1/C), popularity, and the simplest legitimate uses of the history (`WITH_USER`). HR@1 and NDCG@10 are
expectations over ties.

**What does a shortcut find?** A shortcut counts if it beats each of its baselines in HR@1: the paired difference on
the same examples has an interval above 0. The level is 95% for all shortcuts together (Bonferroni: 1 − 0.05/m for
each of m), so at most one in twenty audits of clean candidate sets raises a false alarm. A rule of positions or of
sampling that counts is a **leak**: the protocol gives targets away, whatever items they are, and the interval is over
users. A rule of item properties that counts says that the sets **can be solved without the user**: the users choose
similar items, such as recent ones, which needs no error of the protocol. Its interval is over users and targets,
because a few popular targets have one property or another by chance.

Its baselines are what a legitimate ranker can do with the same information, such as popularity, which uniform
negatives reward:

- for all shortcuts: random. Target position has no other baseline, because a position says nothing about an item.
- position lookup, list lookup: the same rule learnt from shuffled sets, in which targets are independent of positions
  (or negatives); the best of `SHUFFLES` shuffles. It still knows which items were targets.
- title length, least popular first: popularity. If the latter beats only random, the verdict mentions it but it does
  not count: the counts lack a target's own interaction, which reveals rare targets in some sets. If it counts, it is
  a leak where the negatives were sampled by popularity (`shortcuts.favours_popular`), else a property of the items.
- in the history: users who repeat items. The baseline hits where a random training user's last interaction repeats an
  earlier one; the best of `SHUFFLES` samples.
- not in the history: popularity and co-occurrence, because a few negatives are in the history by chance.
- id order and common order (`shortcuts.common_order`): popularity and all of `WITH_USER`, because ids often follow
  the date of an item or of its first user. They are leaks where histories follow this order instead of time.
- item only, one learnt score from all item properties (`ItemOnlyRanker`): popularity, in NDCG@10. In addition, the
  best rule that knows the user must not be significantly better. This finds candidate sets in which each single
  shortcut is near chance, but all together are worth as much as knowing the user.

Weights and directions are learnt on the sets under test with other targets (cross-fitting); lookups learn from
`learn_from`. With fewer than `MIN_USERS` users nothing is found. A rule that has too little data to learn from
(`MIN_LEARN`), or whose baseline has, is not tried. For prepared data, the protocol is checked
(`prefrec.evaluation.faults`) and the data set is described (`prefrec.evaluation.diagnosis`) as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import NO_EXAMPLES, DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.diagnosis import diagnose, row_ndcg
from prefrec.evaluation.faults import protocol_faults
from prefrec.evaluation.intervals import MIN_USERS, Means
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.shortcuts import EncodedSets
from prefrec.evaluation.verdict import (
    ITEM_ONLY,
    LEAST_POPULAR,
    ORDERLY,
    REWARDED,
    TITLE_LENGTH,
    Audit,
    AuditRow,
)
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import CooccurrenceRanker, PopularityRanker, TitleTfidfRanker
from prefrec.rankers.item_only import ItemOnlyRanker
from prefrec.rankers.window import WindowCooccurrenceRanker

MIN_LEARN = 20
"""Examples, and training interactions, that are needed to try a rule that learns from them."""
SHUFFLES = 5
"""Number of shuffles; a lookup must beat the best of them."""
MAX_LEARN_ROWS = 100_000
"""Most examples that a shortcut learns from; a larger number is sampled."""
ROWS, LOG = "rows", "log"
OTHER_SETS = "candidate sets with other targets"
SetRule = Callable[[EncodedSets, EncodedSets], Floats]
"""Candidate sets under test, and others to learn from → scores [B, C] of the first."""
WITH_USER = (CooccurrenceRanker.name, WindowCooccurrenceRanker.name, TitleTfidfRanker.name)
"""Baselines that use the history."""


def audit_prepared(data: PreparedData, split: str = "test", learn_from: str = "train", seed: int = 0) -> Audit:
    """Return the audit of one split of prepared data.

    Args:
        data: prepared data.
        split: `train`, `validation` or `test`: the candidate sets to audit.
        learn_from: another split, from which the shortcuts learn.
        seed: of samples and shuffles.

    Raises:
        DataError: the split has no examples, or is also `learn_from`.
    """
    if learn_from == split:
        raise DataError(f"an audit of the {split} split cannot learn from the same split: choose another one")
    rows = data.examples(split, None)
    learn = data.split(learn_from)
    log = data.train_interactions
    audit = audit_lists(rows, learn, data.catalogue, log, learnt_from=learn_from, seed=seed)
    return replace(audit, faults=protocol_faults(data, split))


def audit_lists(
    examples: Sequence[RankingExample],
    learn: Sequence[RankingExample],
    catalogue: Catalogue,
    train_interactions: pl.DataFrame,
    *,
    learnt_from: str = "train",
    seed: int = 0,
) -> Audit:
    """Audit the candidate sets of examples.

    Args:
        examples: examples to audit.
        learn: examples that lookups learn from; at most `MAX_LEARN_ROWS` are used.
        catalogue: all items.
        train_interactions: log for counts of popularity and co-occurrence.
        learnt_from: name of `learn` in the table.
        seed: of samples and shuffles.
    """
    if not examples:
        raise DataError(f"nothing to audit: the split has no examples; {NO_EXAMPLES}")
    rng = np.random.default_rng(seed)
    if len(learn) > MAX_LEARN_ROWS:
        learnt_from = f"{learnt_from}, {MAX_LEARN_ROWS:,} of {len(learn):,} examples"
        learn = [learn[i] for i in rng.choice(len(learn), MAX_LEARN_ROWS, replace=False)]
    lists = shortcuts.encode_sets(examples, catalogue)
    seen = shortcuts.encode_sets(learn, catalogue)
    few = {
        ROWS: f"only {len(learn)} examples of {learnt_from} to learn from" if len(learn) < MIN_LEARN else "",
        LOG: f"only {len(train_interactions)} training interactions" if len(train_interactions) < MIN_LEARN else "",
    }
    baselines, with_history = _baselines(lists, examples, train_interactions, catalogue)
    rules, placebos = _lookups(lists, seen, rng)

    def cross_fitted(rule: SetRule) -> Floats:
        return shortcuts.cross_fitted(lists, rule, np.random.default_rng(seed))

    title_length = cross_fitted(partial(shortcuts.title_length, catalogue=catalogue))
    rules[TITLE_LENGTH] = _Rule(title_length, ["popularity"], LOG, OTHER_SETS, of_items=True)
    # High counts reveal negatives that were sampled by popularity.
    is_drift = not shortcuts.favours_popular(lists, train_interactions, catalogue)
    rarest = lists.masked(-baselines["popularity"])
    rules[LEAST_POPULAR] = _Rule(rarest, ["popularity"], LOG, of_items=is_drift)
    in_history, repeats = _histories(lists, examples, train_interactions, rng)
    rules |= in_history | _orders(cross_fitted, train_interactions, catalogue)
    item_only = ItemOnlyRanker.fit(train_interactions, catalogue, seed).score(examples)
    rules[ITEM_ONLY] = _Rule(item_only, ["popularity"], LOG, OTHER_SETS, of_items=True)
    scores = baselines | {name: rule.scores for name, rule in rules.items()}
    hits = {name: lists.hits(s) for name, s in scores.items()} | placebos | repeats
    gains = {name: row_ndcg(s, lists.target) for name, s in scores.items()}
    users, targets = [e.user_id for e in examples], [e.target for e in examples]
    over_users = _Measured(Means(hits, users), Means(gains, users))
    over_both = _Measured(Means(hits, users, targets), Means(gains, users, targets))
    rows = _rows(over_users, over_both, list(baselines), rules, few, learnt_from)
    return Audit(rows, diagnosis=diagnose(examples, catalogue, train_interactions, with_history))


def _baselines(
    lists: EncodedSets, examples: Sequence[RankingExample], log: pl.DataFrame, catalogue: Catalogue
) -> tuple[dict[str, Floats], list[Ranker]]:
    """Return the scores [B, C] of the baselines, and the baselines that use the whole history."""
    with_history: list[Ranker] = [WindowCooccurrenceRanker.fit(log), TitleTfidfRanker.fit(catalogue)]
    fitted: list[Ranker] = [PopularityRanker.fit(log), CooccurrenceRanker.fit(log), *with_history]
    scores = {r.name: r.score(examples) for r in fitted}
    return {"random": lists.masked(np.zeros(lists.codes.shape))} | scores, with_history


class _Rule(NamedTuple):
    """A shortcut with its scores."""

    scores: Floats  # [B, C]
    baselines: list[str]  # besides random
    needs: str  # what it and its baselines learn from: `ROWS` or `LOG`
    learnt_from: str = ""  # if not from `ROWS`
    note: str = ""
    share: float | None = None  # share of steps in the order of the rule
    of_items: bool = False  # whether it is a rule of item properties, not of positions or sampling


Trial = tuple[dict[str, _Rule], dict[str, Floats]]
"""Name → rule, and name → expected HR@1 [B] of baselines that are not in the table."""


def _luckiest(draws: Iterable[Floats]) -> Floats:
    # Intervals over test users do not contain the variance of what was learnt, so the best of several draws counts.
    return max(draws, key=lambda hits: float(hits.mean()))


def _lookups(lists: EncodedSets, seen: EncodedSets, rng: np.random.Generator) -> Trial:
    """Return the rules that learn from candidate sets; the baseline is the same rule learnt from shuffled sets."""
    rules = {"target position": _Rule(shortcuts.target_position(lists, seen), [], ROWS)}
    placebos = {}
    for name, rule, shuffled in (
        ("position lookup", shortcuts.position_lookup, shortcuts.shuffled_positions),
        ("list lookup", shortcuts.list_lookup, shortcuts.shuffled_sets),
    ):
        placebo = f"{name}, shuffled"
        placebos[placebo] = _luckiest(lists.hits(rule(lists, shuffled(seen, rng))) for _ in range(SHUFFLES))
        rules[name] = _Rule(rule(lists, seen), [placebo], ROWS)
    return rules, placebos


def _histories(
    lists: EncodedSets, examples: Sequence[RankingExample], log: pl.DataFrame, rng: np.random.Generator
) -> Trial:
    """Return the rules for candidates that are in the history, and for those that are not."""
    # Users may repeat items. The placebo hits as often as the last interaction of random training users is a repeat.
    again = shortcuts.repeats(log, max(len(e.history) for e in examples))
    chance, placebo = 1.0 / lists.lengths, "repeats of training users"
    draws = [np.where(rng.choice(again, len(chance)), 1.0, chance) for _ in range(SHUFFLES if len(again) else 0)]
    inside = shortcuts.in_history(examples)
    rules = {
        "in the history": _Rule(inside, [placebo], LOG),
        "not in the history": _Rule(lists.masked(-inside), ["popularity", "co-occurrence"], LOG),
    }
    return rules, {placebo: _luckiest(draws or [chance])}


def _orders(cross_fitted: Callable[[SetRule], Floats], log: pl.DataFrame, catalogue: Catalogue) -> dict[str, _Rule]:
    """Return rules that choose the next candidate after the last history item, by id and in a common order.

    The note has the share of steps in training histories that follow the order or its reverse.
    """
    columns = shortcuts.id_keys(catalogue)
    orders = {"id order" if c == "item_id" else f"id order ({c})": keys for c, keys in columns.items()}
    common = shortcuts.common_order(log, catalogue)
    if common is not None:
        orders["common order"] = common
    rules = {}
    for name, keys in orders.items():
        share = max(shortcuts.agreement(log, catalogue, k) for k in (keys, -keys))
        scores = cross_fitted(partial(shortcuts.next_in_order, keys=keys))
        source = "histories" if name == "common order" else OTHER_SETS
        note = f"{share:.0%} of steps in this order"
        # Where histories are in the order of time, ids follow the items' dates.
        of_items = share <= ORDERLY
        rules[name] = _Rule(scores, ["popularity", *WITH_USER], LOG, source, note, share, of_items)
    return rules


class _Measured(NamedTuple):
    """HR@1 and NDCG@10 of all rules and baselines, with intervals of one kind."""

    hits: Means
    gains: Means


def _rows(
    over_users: _Measured,
    over_both: _Measured,
    baselines: list[str],
    rules: dict[str, _Rule],
    few: dict[str, str],
    learnt_from: str,
) -> list[AuditRow]:
    """Return the rows with intervals. `few` is `ROWS` and `LOG` → why they are too few, or ""."""
    hits, gains = over_users

    def row(name: str, measured: _Measured = over_users, **more: Any) -> AuditRow:
        return AuditRow(name, measured.hits.mean(name), ndcg=measured.gains.mean(name), **more)

    rows = [row("random")]
    for name in baselines[1:]:
        is_rewarded = name == "popularity" and hits.difference(name, "random").low > 0
        lacks = few[LOG] if name != TitleTfidfRanker.name else ""
        rows.append(row(name, note=lacks or (REWARDED if is_rewarded else ""), tried=not lacks))
    # Without this correction about one in five audits of clean sets would report a leak (nine rules at 2.5%).
    level = 1 - 0.05 / max(1, sum(not few[rule.needs] for rule in rules.values()))
    for name, rule in rules.items():
        if few[rule.needs]:
            rows.append(row(name, note=few[rule.needs], tried=False))
            continue
        measured = over_both if rule.of_items else over_users
        means = measured.gains if name == ITEM_ONLY else measured.hits
        leads = {baseline: means.difference(name, baseline, level) for baseline in ("random", *rule.baselines)}
        nearest = min(leads, key=lambda baseline: leads[baseline].low)
        wins = means.size[1] >= MIN_USERS and leads[nearest].low > 0
        is_rewarded = name == LEAST_POPULAR and not wins and hits.difference(name, "random", level).low > 0
        note = REWARDED if is_rewarded else rule.note
        if name == ITEM_ONLY:
            best = max(WITH_USER, key=lambda baseline: float(gains.values[baseline].mean()))
            # It counts only if the best rule with the history is not significantly better on these examples.
            wins &= gains.difference(name, best, level).high >= 0
            note = f"NDCG@10; best rule with the user: {best} {gains.values[best].mean():.3f}"
        source = rule.learnt_from or (learnt_from if rule.needs == ROWS else "")
        found = {"leak": wins and not rule.of_items, "solves": wins and rule.of_items}
        more = {"learnt_from": source, "note": note, "share": rule.share}
        rows.append(row(name, measured, against=nearest, gain=leads[nearest], **found, **more))
    return rows
