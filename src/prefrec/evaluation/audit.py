"""Audit of candidate lists: can they be ranked without knowing the user?

Shortcuts (`prefrec.evaluation.shortcuts`) are scored on the lists under test, beside references: random (exactly
1/C), popularity, and the simplest honest uses of the history (`WITH_USER`). HR@1 and NDCG@10 are taken in
expectation over ties.

**When is a shortcut a leak?** When it beats each of its rivals in HR@1: the gain, a paired difference on the same
rows, has an interval over users above 0. The level is 95% for all shortcuts together (1 − 0.05/m for each of m,
Bonferroni), so at most one of twenty audits of clean lists raises a false alarm. The rivals are what an honest
ranker could do with the same information; popularity, which uniform candidates reward, is not a leak:

- all: random; for the target position nothing else, since a position says nothing about an item;
- position lookup, list lookup: the same rule learnt from lists in which targets are independent of positions (or
  negatives), the luckiest of `SHUFFLES` draws. It still knows which items were targets;
- title length, least popular first: popularity. If the latter only beats random, the verdict names it without a
  leak: a target's own interaction is missing from the counts, which reveals rare targets in some lists;
- in the history: users who take items again, the luckiest of `SHUFFLES` draws of training users, by whether their
  last interaction repeats an earlier one;
- not in the history: popularity and co-occurrence, since a few negatives are in the history by chance;
- id order and common order (`shortcuts.common_order`): popularity and all of `WITH_USER`, since ids often follow the
  date of an item or of its first user;
- item only, all that is known without the user in one learnt score (`ItemOnlyRanker`): popularity, in NDCG@10, and
  the best rule that knows the user must not be shown to be better. So it finds lists in which each single shortcut
  is near chance, and all together are worth as much as knowing the user.

Rules that learn weights or directions learn them on the lists under test, from other users (cross-fit); lookups
learn from `learn_from`. With fewer than `MIN_USERS` users nothing is called a leak. A rule without enough data to
learn from (`MIN_LEARN`), or with such a rival, counts as not tried. Of prepared data the protocol is looked at, too
(`prefrec.evaluation.faults`), and the data set is described (`prefrec.evaluation.diagnosis`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.diagnosis import diagnose, row_ndcg
from prefrec.evaluation.faults import protocol_faults
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.shortcuts import Lists
from prefrec.evaluation.verdict import ITEM_ONLY, LEAST_POPULAR, MIN_USERS, REWARDED, Audit, AuditRow
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import CooccurrenceRanker, PopularityRanker, TitleTfidfRanker
from prefrec.rankers.item_only import ItemOnlyRanker
from prefrec.rankers.window import WindowCooccurrenceRanker

MIN_LEARN = 20
"""Least number of rows, and of training interactions, to try a rule that learns from them."""
SHUFFLES = 5
"""Number of shuffled lists; a lookup must beat the luckiest of them."""
MAX_LEARN_ROWS = 100_000
"""Largest number of rows a shortcut learns from; of more rows, a random sample is taken."""
ROWS, LOG = "rows", "log"
CROSSED = "these lists, other users"
WITH_USER = (CooccurrenceRanker.name, WindowCooccurrenceRanker.name, TitleTfidfRanker.name)
"""References that use the history."""


def audit_prepared(data: PreparedData, split: str = "test", learn_from: str = "train", seed: int = 0) -> Audit:
    """Return the audit of one split of prepared data.

    Args:
        data: prepared data.
        split: `train`, `validation` or `test`: the candidate sets to audit.
        learn_from: another split, from which the shortcuts learn.
        seed: of samples and shuffles.
    """
    if learn_from == split:
        raise DataError(f"an audit of the {split} lists cannot learn from the {split} lists")
    rows, learn, log = data.some(split, None), data.split(learn_from), data.train_interactions
    found = audit_lists(rows, learn, data.catalogue, log, learnt_from=learn_from, seed=seed)
    return replace(found, faults=protocol_faults(data, split))


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
    references, honest = _references(lists, examples, train_interactions, catalogue)
    rules, placebos = _lookups(lists, seen, rng)
    users = [e.user_id for e in examples]

    def crossed(rule: Callable[[Lists, Lists], Floats]) -> Floats:
        return shortcuts.cross_fitted(lists, users, rule, np.random.default_rng(seed))

    title_length = crossed(lambda own, others: shortcuts.title_length(own, others, catalogue))
    rules["title length"] = _Rule(title_length, ["popularity"], [LOG], CROSSED)
    # Negatives drawn by popularity are revealed by their high counts.
    rules[LEAST_POPULAR] = _Rule(lists.masked(-references["popularity"]), ["popularity"], [LOG])
    in_history, repeats = _histories(lists, examples, train_interactions, rng)
    rules |= in_history | _orders(crossed, train_interactions, catalogue)
    item_only = ItemOnlyRanker.fit(train_interactions, catalogue, seed).score(examples)
    rules[ITEM_ONLY] = _Rule(item_only, ["popularity"], [LOG], CROSSED)
    scores = references | {name: rule.scores for name, rule in rules.items()}
    index = lists.target.tolist()
    hits = {name: lists.hits(s) for name, s in scores.items()} | placebos | repeats
    gains = {name: row_ndcg(s, index) for name, s in scores.items()}
    # A leak of these lists is one whichever items they hold, so the intervals are over users alone.
    rows = _rows(Means(hits, users), Means(gains, users), list(references), rules, few, learnt_from)
    return Audit(rows, diagnosis=diagnose(examples, catalogue, train_interactions, honest))


def _references(
    lists: Lists, examples: Sequence[RankingExample], log: pl.DataFrame, catalogue: Catalogue
) -> tuple[dict[str, Floats], list[Ranker]]:
    """Return the scores [B, C] of the references, and those of them that can use the whole history."""
    honest: list[Ranker] = [WindowCooccurrenceRanker.fit(log), TitleTfidfRanker.fit(catalogue)]
    fitted: list[Ranker] = [PopularityRanker.fit(log), CooccurrenceRanker.fit(log), *honest]
    scores = {r.name: r.score(examples) for r in fitted}
    return {"random": lists.masked(np.zeros(lists.codes.shape))} | scores, honest


class _Rule(NamedTuple):
    """A shortcut under trial."""

    scores: Floats  # [B, C]
    rivals: list[str]  # beside random
    needs: list[str]  # what it and its rivals learn from: `ROWS`, `LOG`
    learnt_from: str = ""  # if not the rows
    note: str = ""
    share: float | None = None  # of steps in the order of the rule


Trial = tuple[dict[str, _Rule], dict[str, Floats]]
"""Rules by name, and the expected hits [B] of rivals that are no rows of the audit."""


def _luckiest(draws: Iterable[Floats]) -> Floats:
    # An interval over test users does not show the luck in what was learnt, hence the luckiest of several.
    return max(draws, key=lambda hits: float(hits.mean()))


def _lookups(lists: Lists, seen: Lists, rng: np.random.Generator) -> Trial:
    """Return rules that learn from lists, each against the same rule learnt from shuffled lists."""
    rules = {"target position": _Rule(shortcuts.target_position(lists, seen), [], [ROWS])}
    placebos = {}
    for name, rule, shuffled in (
        ("position lookup", shortcuts.position_lookup, shortcuts.shuffled_positions),
        ("list lookup", shortcuts.list_lookup, shortcuts.shuffled_lists),
    ):
        placebo = f"{name}, shuffled"
        placebos[placebo] = _luckiest(lists.hits(rule(lists, shuffled(seen, rng))) for _ in range(SHUFFLES))
        rules[name] = _Rule(rule(lists, seen), [placebo], [ROWS])
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
    outside = lists.masked(-inside)
    rules = {
        "in the history": _Rule(inside, [placebo], [LOG]),
        "not in the history": _Rule(outside, ["popularity", "co-occurrence"], [LOG]),
    }
    return rules, {placebo: _luckiest(draws or [chance])}


def _orders(
    crossed: Callable[[Callable[[Lists, Lists], Floats]], Floats], log: pl.DataFrame, catalogue: Catalogue
) -> dict[str, _Rule]:
    """Return rules for the next candidate after the last history item, by id and in the common order of histories.

    The note has the share of steps in the training histories that follow that order or its reverse.
    """
    columns = shortcuts.id_keys(catalogue)
    orders = {"id order" if c == "item_id" else f"id order ({c})": keys for c, keys in columns.items()}
    orders["common order"] = shortcuts.common_order(log, catalogue)
    rules = {}
    for name, keys in orders.items():
        share = max(shortcuts.agreement(log, catalogue, k) for k in (keys, -keys))
        scores = crossed(lambda own, others, keys=keys: shortcuts.next_in_order(own, others, keys))  # type: ignore[misc]
        source, note = "histories" if name == "common order" else CROSSED, f"{share:.0%} of steps in this order"
        rules[name] = _Rule(scores, ["popularity", *WITH_USER], [LOG], source, note, share)
    return rules


def _rows(
    hits: Means, gains: Means, references: list[str], rules: dict[str, _Rule], few: dict[str, str], learnt_from: str
) -> list[AuditRow]:
    """Return the rows with intervals. `few` says of `ROWS` and `LOG` that they are not enough, or ""."""

    def row(name: str, **more: Any) -> AuditRow:
        return AuditRow(name, hits.mean(name), ndcg=gains.mean(name), **more)

    rows = [row("random")]
    for name in references[1:]:
        is_rewarded = name == "popularity" and hits.difference(name, "random").low > 0
        lacks = few[LOG] if name != TitleTfidfRanker.name else ""
        rows.append(row(name, note=lacks or (REWARDED if is_rewarded else ""), tried=not lacks))
    lacking = {name: " and ".join(few[n] for n in rule.needs if few[n]) for name, rule in rules.items()}
    # Without this correction about one of five audits of clean lists would report a leak (nine rules at 2.5%).
    level = 1 - 0.05 / max(1, sum(not reason for reason in lacking.values()))
    for name, rule in rules.items():
        if lacking[name]:
            rows.append(row(name, note=lacking[name], tried=False))
            continue
        means = gains if name == ITEM_ONLY else hits
        found = {rival: means.difference(name, rival, level) for rival in ("random", *rule.rivals)}
        nearest = min(found, key=lambda rival: found[rival].low)
        leak = means.size[1] >= MIN_USERS and found[nearest].low > 0
        note = REWARDED if name == LEAST_POPULAR and not leak and found["random"].low > 0 else rule.note
        if name == ITEM_ONLY:
            best = max(WITH_USER, key=lambda rival: float(gains.values[rival].mean()))
            # As good as knowing the user, or better: no rule with the history is shown to be above it.
            leak &= gains.difference(name, best, level).high >= 0
            note = f"NDCG@10; best rule with the user: {best} {gains.values[best].mean():.3f}"
        source = rule.learnt_from or (learnt_from if ROWS in rule.needs else "")
        told = {"learnt_from": source, "note": note, "share": rule.share}
        rows.append(row(name, leak=leak, against=nearest, gain=found[nearest], **told))
    return rows
