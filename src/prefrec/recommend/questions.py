"""Queries in full ranking: the rules of a recommendation, and the answers for all entry points."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, PreparedData, RankingExample, UnknownUserError, user_histories
from prefrec.errors import DataError
from prefrec.pipeline.negatives import history_length
from prefrec.rankers.base import Ranker, checked_scores
from prefrec.rankers.baselines import ItemFeatureRanker, PopularityRanker
from prefrec.rankers.catalogue import CatalogueRanker, Recommendation
from prefrec.recommend.popular import Popular
from prefrec.recommend.rules import Rules


@dataclass(frozen=True)
class Question:
    """A query for the `k` best items after a history.

    Attributes:
        history: item ids, oldest first.
        k: number of items.
        without: ids of excluded items.
        groups: item id → group. Items without a group are not limited.
        at_most: maximum number of items per group.
        popular: popularity of the items; None: not known.
    """

    history: Sequence[str]
    k: int
    without: Collection[str] = ()
    groups: Mapping[str, Any] = field(default_factory=dict)
    at_most: int = 0
    popular: Popular | None = None

    @property
    def by_popularity(self) -> Recommendation | None:
        """The answer to an empty history, whose scores are numbers of interactions.

        None if a ranker has to answer: there is a history, or no popularity is known.
        """
        if self.history or self.popular is None:
            return None
        ids, counts = self.popular.ids, self.popular.counts
        kept = [n for n, item in enumerate(ids) if item not in self.without]
        return self.answer(Recommendation([ids[n] for n in kept], counts[kept], True, "popularity"))

    def answer(self, best: Recommendation) -> Recommendation:
        """Return the first `k` items of a ranking that the limit per group allows; equal scores by popularity."""
        if not self.groups and len(best.item_ids) > self.k:  # the others cannot be among the first
            best = _picked(best, np.flatnonzero(best.logps >= best.logps[self.k - 1]))
        if self.popular is not None and (best.logps[1:] == best.logps[:-1]).any():
            positions = np.array([self.popular.position[item] for item in best.item_ids])
            best = _picked(best, np.lexsort((positions, -best.logps)))
        counts: Counter[Any] = Counter()
        kept = []
        for index, item in enumerate(best.item_ids):
            group = self.groups.get(item)
            counts[group] += 1
            if group is None or counts[group] <= self.at_most:
                kept.append(index)
        return _picked(best, kept[: self.k])


def _picked(best: Recommendation, indices: Sequence[int] | NDArray[np.int64]) -> Recommendation:
    """Return the items of a ranking at these indices."""
    return replace(best, item_ids=[best.item_ids[i] for i in indices], logps=best.logps[indices])


class RulesError(DataError):
    """The rules do not fit the catalogue, or exclude every item."""


class Selection:
    """The rules of a recommendation, applied to a catalogue.

    Args:
        catalogue: the catalogue.
        rules: the rules.
        k: number of items to recommend.
        popular: popularity of the items. Default: not known.
        repeats: recommend items that the user has seen unless the rules exclude them.
        functions: allow functions in the condition `where`.

    Raises:
        RulesError: `k` is not a whole number from 1, or the rules do not fit the catalogue, or exclude every item.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        rules: Rules,
        k: int,
        popular: Popular | None = None,
        *,
        repeats: bool = False,
        functions: bool = True,
    ) -> None:
        self.rules, self.k, self.popular = rules, _whole(k), popular
        self.excludes_seen = not repeats if rules.exclude_seen is None else rules.exclude_seen
        frame, columns = catalogue.frame, ", ".join(catalogue.frame.columns)
        # Nested functions could create texts of any length.
        if not functions and not _is_plain(rules.where or ""):
            raise RulesError("where: functions, comments, backslashes, $ and # are not allowed here")
        try:
            kept = frame if rules.where is None else frame.filter(pl.sql_expr(rules.where))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as e:
            reason = str(e).partition("\n")[0]
            hint = f"the catalogue has the columns {columns}; put texts in single quotes"
            raise RulesError(f"where {rules.where!r}: {reason}; {hint}") from None
        if rules.allow is not None:
            kept = kept.filter(pl.col("item_id").is_in(rules.allow))
        # Without these rules, the time must not grow with the size of the catalogue.
        others = () if kept is frame else {*catalogue.ids}.difference(kept["item_id"])
        self._excluded = {*rules.deny, *others}
        if self._excluded.issuperset(catalogue.ids):
            raise RulesError("the rules (allow, deny, where) exclude every item of the catalogue; relax them")
        if (rules.at_most is None) != (rules.per is None):
            raise RulesError("at_most, per: give both or neither")
        if rules.per is not None and (rules.per not in frame.columns or frame.schema[rules.per].is_nested()):
            raise RulesError(
                f"per {rules.per!r}: the catalogue has no such column of single values; it has {columns}"
            )
        self._groups = dict(zip(frame["item_id"], frame[rules.per], strict=True)) if rules.per else {}

    def question(self, history: Sequence[str], seen: Collection[str]) -> Question:
        """Return a question under these rules; `seen` are the items that the user has seen."""
        without = self._excluded.union(seen) if self.excludes_seen else self._excluded
        return Question(history, self.k, without, self._groups, self.rules.at_most or 0, self.popular)


def _whole(k: Any) -> int:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise RulesError(f"k: expected a whole number of at least 1, got {k!r}")
    return int(k)


_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`""")


def _is_plain(where: str) -> bool:
    """Return True if a condition has no functions, nor anything that could hide one inside a text."""
    # Texts are replaced by a quote, and quoted names by a name. In some dialects, texts with a prefix such as E'…', a
    # backslash or a dollar sign end elsewhere.
    bare = _QUOTED.sub(lambda quoted: "'" if quoted[0].startswith("'") else "name", where)
    called = {word.lower() for word in re.findall(r"([\w\"`\]]+)\s*\(", bare)}
    hidden = re.search(r"[\\$]", where) or re.search(r"--|/\*|#|[\w&@]'", bare)
    return not hidden and called <= {"in", "and", "or", "not"}


def user_ids(given: Any, field: str = "users") -> list[str]:
    """Return ids of users as texts; a single one becomes a list of one.

    Raise DataError, which names the field, if one of them is neither text nor a whole number.
    """
    single = isinstance(given, str | Integral)
    users = [given] if single or field == "user" or not isinstance(given, Iterable) else [*given]
    for user in users:
        if not isinstance(user, str | Integral) or isinstance(user, bool):
            several = "; recommend_all(users=[…]) answers several users" if field == "user" else ""
            raise DataError(f"{field}: a user's id is text or a whole number, not {type(user).__name__}{several}")
    return [str(user) for user in users]


def logged_users(data: PreparedData, users: Collection[str] | None = None) -> dict[str, tuple[list[str], list[str]]]:
    """Return user → the most recent items (as many as in evaluation), and all items of the log.

    `users` are ids of users, by default all. Raise UnknownUserError if a user is not in the log.
    """
    last = history_length(data)
    try:
        histories = user_histories(data, users)
    except UnknownUserError as e:
        raise UnknownUserError(
            f"{e}: recommend with a history in place of the user; an empty one gets the items that are popular now"
        ) from None
    return {user: (items[-last:], items) for user, items in histories.items()}


def best_items(ranker: CatalogueRanker, question: Question, max_calls: int | None, logps: Any) -> Recommendation:
    """Return the best items of the catalogue; arguments and errors are as for `CatalogueRanker.recommend`."""
    if (popular := question.by_popularity) is not None:
        return popular
    depth = question.k * 4 if question.groups else question.k
    while True:
        best = ranker.recommend(question.history, depth, without=question.without, max_calls=max_calls, logps=logps)
        answer = question.answer(best)
        if len(answer.item_ids) == question.k or len(best.item_ids) < depth:
            return answer
        depth *= 4


def similar_items(ranker: Ranker, question: Question, catalogue: Catalogue) -> Recommendation:
    """Return the items whose similarity to the item of a question is above 0, best first.

    Args:
        ranker: ranks by similarity to the last item of a history (`prefrec.rankers.similar`).
        question: its history is the item.
        catalogue: the catalogue.
    """
    (best,) = _scored(ranker, [question], catalogue)
    return _picked(best, np.flatnonzero(best.logps > 0))


def answer_all(ranker: Ranker, questions: Sequence[Question], catalogue: Catalogue) -> list[Recommendation]:
    """Return the best items for each question by any ranker; all processes of a job share the work.

    For rankers other than language models, `logps` are their scores. An empty history is answered by popularity,
    unless the ranker ignores histories. Raise ModelError if a score is NaN.
    """
    if isinstance(ranker, CatalogueRanker):
        share = processes.share([*enumerate(questions)])
        known = ranker.lm.item_logps([question.history for _, question in share])
        queries = zip(track(share, f"{ranker.name}: ranking the catalogue"), known, strict=True)
        by_number = dict(
            processes.pool([(number, best_items(ranker, q, None, logps)) for (number, q), logps in queries])
        )
        return [by_number[number] for number in range(len(questions))]
    ignores_histories = isinstance(ranker, PopularityRanker | ItemFeatureRanker)
    by_popularity = [None if ignores_histories else question.by_popularity for question in questions]
    asked = [question for question, known in zip(questions, by_popularity, strict=True) if known is None]
    scored = iter(_scored(ranker, asked, catalogue))
    return [next(scored) if known is None else known for known in by_popularity]


def _scored(ranker: Ranker, questions: Sequence[Question], catalogue: Catalogue) -> list[Recommendation]:
    """Return the best items for each question by the scores of a ranker."""
    lists = [tuple(item for item in catalogue.ids if item not in q.without) for q in questions]
    # Users and targets are placeholders: an answer depends on its history alone, whatever else is asked.
    # These rankers distribute the rows themselves.
    pairs = zip(questions, lists, strict=True)
    rows = [RankingExample("-", tuple(q.history), items, items[0]) for q, items in pairs if items]
    scores = iter(checked_scores(ranker, rows) if rows else ())
    answers = []
    for question, items in zip(questions, lists, strict=True):
        values = next(scores)[: len(items)] if items else np.empty(0)
        order = [i for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
        best = Recommendation([items[i] for i in order], values[order].astype(np.float32), True, "exact")
        answers.append(question.answer(best))
    return answers
