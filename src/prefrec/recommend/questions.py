"""Queries in full ranking: the rules of a recommendation, and the answers for all entry points."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from numbers import Integral
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec import processes
from prefrec.console import track
from prefrec.data import Candidates, Catalogue, PreparedData, UnknownUserError
from prefrec.data.seen import unknown_user, user_logs
from prefrec.errors import DataError
from prefrec.rankers.base import Ranker, Recommendation, SearchRanker
from prefrec.recommend.best import Best, best_of, boosted, boosted_depth
from prefrec.recommend.new_items import NewItems, with_new
from prefrec.recommend.popular import Popular
from prefrec.recommend.rules import Rules


class Past(NamedTuple):
    """The history to ask about, all items that the user has seen, and times of the history (`Question.times`)."""

    history: Sequence[str]
    seen: Sequence[str]
    times: Sequence[int] = ()


@dataclass(frozen=True)
class Question:
    """A query for the best items after a history, under the rules of a selection.

    Attributes:
        history: item ids, oldest first.
        seen: ids of items that are not recommended, although the rules allow them.
        selection: the rules.
        times: times of the first items of the history (`Query.history_times`).
    """

    history: Sequence[str]
    seen: Collection[str]
    selection: Selection
    times: Sequence[int] = ()

    @property
    def without(self) -> Collection[str]:
        """Ids of all items that are not recommended."""
        return self.selection.excluded.union(self.seen)

    def placed(self, rank: Callable[[Question], Recommendation]) -> Recommendation:
        """Return the answer by a function that ranks a question, with places for new items if the rules say so."""
        if not self.parts:
            return rank(self)
        main, fresh = map(rank, self.parts)
        return self.joined(main, fresh)

    @property
    def parts(self) -> tuple[Question, Question] | None:
        """The questions for a longer ranking and for new items alone; None if these get no places."""
        if (selections := self.selection.for_new) is None:
            return None
        whole, new = selections
        return replace(self, selection=whole), replace(self, selection=new)

    def joined(self, main: Recommendation, fresh: Recommendation) -> Recommendation:
        """Return the answer, of the answers to `parts`."""
        own = self.selection
        assert own.new is not None
        limits: dict[str, Any] = {"groups": own.groups, "at_most": own.at_most}
        return with_new(main, fresh, own.new.ids, every=own.new_every, k=own.k, **limits)

    @property
    def by_popularity(self) -> Recommendation | None:
        """The answer to an empty history, whose scores are numbers of interactions.

        None if a ranker has to answer: there is a history, or no popularity is known.
        """
        popular = self.selection.popular
        if self.history or popular is None:
            return None
        without = self.without
        kept = [n for n, item in enumerate(popular.ids) if item not in without]
        return self.answer(Recommendation([popular.ids[n] for n in kept], popular.counts[kept], True, "popularity"))

    def answer(self, best: Recommendation, known: int | None = None) -> Recommendation:
        """Return the first `k` items of a ranking after boosts that the limit per group allows.

        Equal scores are in the order of popularity.

        Args:
            best: the ranking.
            known: number of items after boosts that no item outside the ranking can precede. Default: all.
        """
        selection = self.selection
        groups, k, popular, factors = selection.groups, selection.k, selection.popular, selection.factors
        if not groups and factors is None and len(best.item_ids) > k:  # the others cannot be among the first
            best = _picked(best, np.flatnonzero(best.logps >= best.logps[k - 1]))
        if popular is not None and (best.logps[1:] == best.logps[:-1]).any():
            positions = np.array([popular.position[item] for item in best.item_ids])
            best = _picked(best, np.lexsort((positions, -best.logps)))
        if factors is not None:
            place = selection.catalogue.index
            own = factors[[place[item] for item in best.item_ids]]
            best = _picked(best, boosted(np.zeros(len(own), dtype=np.int64), own)[:known])
        counts: Counter[Any] = Counter()
        kept = []
        for index, item in enumerate(best.item_ids):
            group = groups.get(item)
            counts[group] += 1
            if group is None or counts[group] <= selection.at_most:
                kept.append(index)
        return _picked(best, kept[:k])


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
        new: the items without interactions. Default: they get no places.

    Attributes:
        excluded: ids of items that the rules exclude.
        groups: item id → group. Items without a group are not limited.
        at_most: maximum number of items per group.
        factors: [I] boost of each item of the catalogue; None without boosts.
        unmatched: column and value of boosts that no item has.
        new_every: one place in as many goes to a new item; 0: none.

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
        new: NewItems | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.new = new
        self.rules = rules
        self.k = _whole(k)
        self.popular = popular
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
        self.excluded = frozenset({*rules.deny, *others})
        if self.excluded.issuperset(catalogue.ids):
            raise RulesError("the rules (allow, deny, where) exclude every item of the catalogue; relax them")
        if (rules.at_most is None) != (rules.per is None):
            raise RulesError("at_most, per: give both or neither")
        if rules.per is not None:
            _check_column(f"per {rules.per!r}", rules.per, frame)
        self.groups = dict(zip(frame["item_id"], frame[rules.per], strict=True)) if rules.per else {}
        self.at_most = rules.at_most or 0
        self.new_every = (new.every if new else 0) if rules.new_every is None else rules.new_every
        if self.new_every and not (new and new.has_log):
            raise RulesError(
                "new_every: only a log tells which items are new, and an exported language model has none: ask a run"
            )
        self.unmatched: list[tuple[str, str]] = []
        self.factors = self._factors(rules.boost) if rules.boost else None

    def _factors(self, boost: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
        """Return the boost [I] of each item, and add those that no item has to `unmatched`."""
        frame = self.catalogue.frame
        factors = np.ones(len(frame))
        for column, by_value in boost.items():
            _check_column(f"boost {column!r}", column, frame)
            kind, texts = frame.schema[column], pl.Series([*by_value], dtype=pl.String)
            if not kind.is_integer():
                kind = pl.Float64() if kind.is_numeric() else pl.String()
            values, wanted = frame[column].cast(kind), texts.cast(kind, strict=False)
            if kind.is_integer():
                # Names of values are texts in JSON, where 1990 and 1990.0 are the same number. Only those that are
                # not written as integers are read as numbers of floating point, which would confuse large ids.
                numbers = texts.cast(pl.Float64, strict=False)
                whole = numbers.set(numbers != numbers.floor(), None).cast(kind, strict=False)
                wanted = wanted.fill_null(whole)
            named = pl.DataFrame({"value": wanted, "factor": [*by_value.values()]})
            named = named.cast({"factor": pl.Float64})  # a column may be given without values
            is_known = named["value"].is_in(values.drop_nulls().unique().implode())
            self.unmatched += [(column, text) for text in texts.filter(~is_known.fill_null(False))]
            named = named.filter(is_known).group_by("value").agg(pl.col("factor").product())
            factors *= values.replace_strict(named["value"], named["factor"], default=1.0).to_numpy()
        return factors

    @cached_property
    def for_new(self) -> tuple[Selection, Selection] | None:
        """The rules for a longer ranking, and those for new items alone (`with_new`); None if these get no places."""
        if not self.new_every or self.new is None:
            return None
        excluded = self.excluded.union(item for item in self.catalogue.ids if item not in self.new.ids)
        if excluded.issuperset(self.catalogue.ids):
            return None
        places = self.k // self.new_every
        # A new item may take a place in a group, so that an item of the ranking is left out for each of them.
        return self._changed(self.k + places, self.excluded), self._changed(self.k, excluded)

    def _changed(self, k: int, excluded: frozenset[str]) -> Selection:
        """Return these rules for another number of items and other excluded ones, without places for new items."""
        other = copy(self)
        for name in ("items", "group_codes", "item_factors", "for_new"):
            other.__dict__.pop(name, None)
        other.k, other.excluded, other.new_every = k, excluded, 0
        return other

    def question(self, history: Sequence[str], seen: Collection[str], times: Sequence[int] = ()) -> Question:
        """Return a question under these rules; the arguments are the fields of `Past`."""
        return Question(history, seen if self.excludes_seen else (), self, times)

    @cached_property
    def items(self) -> Candidates:
        """Ids of the allowed items, in the order in which items with equal scores are answered."""
        ids = Candidates(self.catalogue.ids) if self.popular is None else self.popular.items
        return Candidates(item for item in ids if item not in self.excluded) if self.excluded else ids

    @cached_property
    def group_codes(self) -> NDArray[np.int64] | None:
        """Group [I] of each allowed item, -1 for an item without one; None without groups."""
        if not self.groups:
            return None
        codes = {group: n for n, group in enumerate(dict.fromkeys(self.groups.values()))} | {None: -1}
        return np.array([codes[self.groups[item]] for item in self.items], dtype=np.int64)

    @cached_property
    def item_factors(self) -> NDArray[np.float64] | None:
        """Boost [I] of each allowed item; None without boosts."""
        if self.factors is None:
            return None
        index = self.catalogue.index
        return self.factors[[index[item] for item in self.items]]


def _check_column(rule: str, column: str, frame: pl.DataFrame) -> None:
    """Raise RulesError, which begins with `rule`, unless the catalogue has a column of single values by this name."""
    if column not in frame.columns or frame.schema[column].is_nested():
        columns = ", ".join(frame.columns)
        raise RulesError(f"{rule}: the catalogue has no such column of single values; it has {columns}")


def _whole(k: Any) -> int:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise RulesError(f"k: expected a whole number of at least 1, got {k!r}")
    return int(k)


_KEYWORDS = {"in", "and", "or", "not", "between", "like", "ilike", "is", "case", "when", "then", "else"}
"""Words of SQL before a parenthesis that call nothing: no function has such a name."""
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`""")


def _is_plain(where: str) -> bool:
    """Return True if a condition has no functions, nor anything that could hide one inside a text."""
    # Texts are replaced by a quote, and quoted names by a name. In some dialects, texts with a prefix such as E'…', a
    # backslash or a dollar sign end elsewhere.
    bare = _QUOTED.sub(lambda quoted: "'" if quoted[0].startswith("'") else "name", where)
    called = {word.lower() for word in re.findall(r"([\w\"`\]]+)\s*\(", bare)}
    hidden = re.search(r"[\\$]", where) or re.search(r"--|/\*|#|[\w&@]'", bare)
    return not hidden and called <= _KEYWORDS


def user_ids(given: Any, field: str = "users") -> list[str]:
    """Return ids of users as texts; a single one becomes a list of one.

    Raise DataError, which names the field, if one of them is neither text nor a whole number, or has bytes that are
    not UTF-8.
    """
    single = isinstance(given, str | Integral)
    users = [given] if single or field == "user" or not isinstance(given, Iterable) else [*given]
    for user in users:
        if not isinstance(user, str | Integral) or isinstance(user, bool):
            several = "; recommend_all(users=[…]) answers several users" if field == "user" else ""
            raise DataError(f"{field}: a user's id is text or a whole number, not {type(user).__name__}{several}")
    ids = [str(user) for user in users]
    for user in ids:
        try:
            user.encode()
        except UnicodeEncodeError as e:  # of the command line, where such a byte becomes half of a character
            raise DataError(f"{field}: the id {user!r} is not valid UTF-8") from e
    return ids


_INSTEAD = "recommend with a history in place of the user; an empty one gets the items that are popular now"


def logged_lists(data: PreparedData, users: Collection[str] | None = None) -> pl.DataFrame:
    """Return the frame of `user_logs`; raise UnknownUserError, which says what to do, if a user is not in the log."""
    try:
        return user_logs(data, users)
    except UnknownUserError as e:
        raise UnknownUserError(f"{e}: {_INSTEAD}") from None


def logged(items: list[str], times: list[int], touched: list[str], last: int) -> Past:
    """Return the past with the `last` items (0: all) of a user of `logged_lists`."""
    return Past(items[-last:], [*items, *touched], times[-last:])


def logged_users(data: PreparedData, users: Collection[str] | None = None) -> dict[str, Past]:
    """Return user → what `logged` does; arguments and errors are those of `logged_lists`."""
    lists, last = logged_lists(data, users), data.history_length
    return {user: logged(items, times, touched, last) for user, items, times, touched in lists.iter_rows()}


class LoggedUsers:
    """The histories of all users of a log, which is read once; `logged_users` reads it for each question.

    Attributes:
        ids: ids of all users of the log, sorted.
    """

    def __init__(self, data: PreparedData) -> None:
        lists = logged_lists(data)
        self.ids: list[str] = lists["user_id"].to_list()
        self._lists, self._last = lists, data.history_length

    def past(self, user: str) -> Past:
        """Return what `logged` does for a user; errors are those of `logged_lists`."""
        place = bisect_left(self.ids, user)
        if self.ids[place : place + 1] != [user]:
            raise UnknownUserError(f"{unknown_user(user)}: {_INSTEAD}")
        _, items, times, touched = self._lists.row(place)
        return logged(items, times, touched, self._last)


def best_items(ranker: SearchRanker, question: Question, max_calls: int | None, logps: Any) -> Recommendation:
    """Return the best items of the catalogue; arguments and errors are as for `CatalogueRanker.recommend`."""
    return question.placed(lambda part: _best_items(ranker, part, max_calls, logps))


def _best_items(ranker: SearchRanker, question: Question, max_calls: int | None, logps: Any) -> Recommendation:
    if (popular := question.by_popularity) is not None:
        return popular
    selection = question.selection
    k, factors = selection.k, selection.factors
    wanted = k * 4 if selection.groups else k
    while True:
        # One more than there are items is as good as any greater number.
        depth = wanted if factors is None else min(boosted_depth(wanted, factors), len(factors) + 1)
        best, has_all = _with_ties(ranker, question, depth, max_calls, logps)
        answer = question.answer(best, None if has_all else wanted)
        if len(answer.item_ids) == k or has_all:
            return answer
        wanted *= 4


def _with_ties(
    ranker: SearchRanker, question: Question, depth: int, max_calls: int | None, logps: Any
) -> tuple[Recommendation, bool]:
    """Return the `depth` best items and those that score the same as the last of them, and whether they are all."""
    without, by_catalogue = question.without, question.selection.popular is None
    asked = depth if by_catalogue else depth + 1
    while True:
        best = ranker.recommend(question.history, asked, without=without, max_calls=max_calls, logps=logps)
        if by_catalogue or len(best.item_ids) < asked:
            return best, len(best.item_ids) < asked
        # The ranker cuts equal scores in the order of the catalogue, but the more popular item comes first.
        is_in = best.logps >= best.logps[depth - 1]
        if not is_in[-1] or not best.exact:  # a search that was ended early finds no more
            return _picked(best, np.flatnonzero(is_in)), False
        asked *= 4


def answer_all(ranker: Ranker, questions: Sequence[Question]) -> list[Recommendation]:
    """Return the best items for each question by any ranker; all processes of a job share the work.

    For rankers other than language models, `logps` are their scores. An empty history is answered by popularity,
    unless the ranker ignores histories. Raise ModelError if a score is NaN.
    """
    if isinstance(ranker, SearchRanker):
        share = processes.share([*enumerate(questions)])
        known = ranker.lm.item_logps([question.history for _, question in share])
        asked = zip(track(share, f"{ranker.name}: ranking the catalogue"), known, strict=True)
        by_number = dict(
            processes.pool([(number, best_items(ranker, q, None, logps)) for (number, q), logps in asked])
        )
        return [by_number[number] for number in range(len(questions))]
    placing = {number: parts for number, question in enumerate(questions) if (parts := question.parts)}
    if not placing:
        return _answer_all(ranker, questions)
    # Questions of one call share their rules.
    new = next(questions[number].selection.new for number in placing)
    assert new is not None
    mains = _answer_all(ranker, [placing[n][0] if n in placing else q for n, q in enumerate(questions)])
    fresh = _answer_all(new.ranked_by(ranker), [part for _, part in placing.values()])
    by_number = dict(zip(placing, fresh, strict=True))
    return [
        question.joined(main, by_number[number]) if number in placing else main
        for number, (question, main) in enumerate(zip(questions, mains, strict=True))
    ]


def _answer_all(ranker: Ranker, questions: Sequence[Question]) -> list[Recommendation]:
    """Return the best items for each question, without places for new items, by a ranker that does not search."""
    answers = []
    for _, group in groupby(questions, key=attrgetter("selection")):
        alike = [*group]
        ids = alike[0].selection.items
        for best in best_blocks(ranker, alike):
            for items, scores, by_popularity in best:
                method: Any = "popularity" if by_popularity else "exact"
                answers.append(Recommendation([ids[i] for i in items.tolist()], scores, True, method))
    return answers


def best_blocks(ranker: Ranker, questions: Sequence[Question]) -> Iterator[Best]:
    """Yield the best items for questions of one selection; the ranker is not a language model (`best_of`)."""
    if questions:
        rules = questions[0].selection
        yield from best_of(
            ranker,
            questions,
            rules.items,
            rules.k,
            popular=rules.popular,
            groups=rules.group_codes,
            at_most=rules.at_most,
            factors=rules.item_factors,
        )
