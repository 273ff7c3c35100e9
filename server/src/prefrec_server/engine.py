"""Turn requests into choice sets, and scores into answers, without HTTP."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from scipy.special import softmax

from prefrec.console import say
from prefrec.data import PreparedData, Query
from prefrec.errors import DataError
from prefrec.prompts import ChoiceSet
from prefrec.rankers.base import Recommendation
from prefrec.recommend.explain import EXPLAINED, Reasons, without_each
from prefrec.recommend.items import ItemIndex
from prefrec.recommend.new_items import NewItems
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import LoggedUsers, Question, Selection
from prefrec.recommend.rules import ById, Item, ItemName, ItemRules, Relation, Rules
from prefrec_server import bodies
from prefrec_server.batcher import Batcher
from prefrec_server.scorer import Beside, Scorer, Scores, Why

if TYPE_CHECKING:
    from prefrec.stages.encoders import Encoder

Body = TypeVar("Body")
Asked = ChoiceSet | Query | Question | Why | Beside
"""A question: about candidates, to a language model or another ranker; about all items, reasons or related items."""


class UnknownRankerError(DataError):
    """The run has no ranker of this name."""


@dataclass(frozen=True)
class Prepared(Generic[Body]):
    """Questions of one type for the worker, and a function from the worker's answers to the response."""

    ranker: str
    questions: Sequence[Asked]
    answer: Callable[[list[Any]], Body]


_History = tuple[list[Item], list[str], Sequence[int]]
"""Items of a history, all items that the user has seen, and the times of those in the log."""


class Engine:
    """Answers requests about one run. One thread encodes the requests of all clients, another one scores them.

    Args:
        scorer: the rankers.
        data: prepared data.
        encoder: encoder of prompts, which no other thread uses; None without language models.
        split: split whose examples can be shown.
        rankers: names of the rankers to serve; the first is the default.
        for_new: the default where seen items are excluded. Default: the first.
        new_every: one place in as many goes to a new item where a request does not say; 0: none.
        **queue: options of the `Batcher`.
    """

    def __init__(
        self,
        scorer: Scorer,
        data: PreparedData,
        encoder: Encoder | None,
        split: str,
        rankers: Sequence[str],
        for_new: str | None = None,
        new_every: int = 0,
        **queue: Any,
    ) -> None:
        self.data = data
        self.items = ItemIndex(data.catalogue)
        if encoder is not None:
            self.encoder, self.template = encoder, scorer.lm.template
        self.examples = data.split(split)
        self.rankers = list(rankers)
        self.for_new = for_new or self.rankers[0]
        self._new = NewItems(data, new_every)
        self.models = [name for name in rankers if name in scorer.adapters]
        self._scorer = scorer
        # One thread, because a fast tokenizer stores the settings of a call in itself: two simultaneous calls would
        # mix them up. A pool instead of a lock, because its jobs can be cancelled when the client has gone.
        self._encoders = ThreadPoolExecutor(1, thread_name_prefix="prefrec-encoder")
        self._preparing: set[Future[Any]] = set()
        self._counting = threading.Lock()
        self.batcher: Batcher[Asked, Any] = Batcher(self._work, size=self._tokens, **queue)
        scorer.before_call = self.batcher.check_wanted

    def prepare(self, make: Callable[[], Prepared[Body]]) -> Future[Prepared[Body]]:
        """Queue a call of `rank`, `explain` or `recommend`; raise errors of `Batcher.check_room`."""
        with self._counting:
            self.batcher.check_room(len(self._preparing))
            future = self._encoders.submit(make)
            self._preparing.add(future)
        future.add_done_callback(self._preparing.discard)
        return future

    def submit(self, prepared: Prepared[Body], timeout: float) -> Future[list[Any]]:
        """Queue a prepared request for scoring; raise errors of `Batcher.submit`."""
        # Questions of the same type to the same ranker may share a pass.
        kind = prepared.ranker, type(prepared.questions[0])
        return self.batcher.submit(kind, prepared.questions, timeout)

    def rank(self, request: bodies.RankRequest) -> Prepared[bodies.RankAnswer]:
        """Prepare a ranking request.

        Raises:
            UnknownRankerError, UnknownItemsError: a name is unknown.
            DataError: an item is given twice.
            TokenizerError: the candidates do not fit into the prompt.
        """
        ranker = self._ranker(request.ranker)
        history, candidates = self.items.resolve_lists(request.history, request.candidates)
        is_model, dropped = ranker in self.models, 0
        question: Asked
        if is_model:
            question, dropped = self.encoder.fit(self.template, *_titles(history, candidates, candidates))
        else:
            shown, listed = (tuple(item.item_id for item in items) for items in (history, candidates))
            question = Query(shown, listed)

        def answer(scores: Scores) -> bodies.RankAnswer:
            order = np.argsort(-scores[0], kind="stable")
            ranking = _ranking([candidates[n] for n in order], scores[0][order], is_model)
            return bodies.RankAnswer(
                ranker=ranker,
                history=history if request.show_history else None,
                history_shortened=dropped > 0,
                ranking=ranking,
            )

        return Prepared(ranker, [question], answer)

    def explain(self, request: bodies.ExplainRequest) -> Prepared[bodies.ExplainAnswer]:
        """Prepare an explanation (`prefrec.recommend.explain`) of the score of an item.

        For a language model, the questions are the history in the prompt, whole and without each of its items. Raise
        errors of `recommend`, and DataError if the item is not among the candidates.
        """
        ranker = self._ranker(request.ranker)
        history, _, times = self._history(request)
        candidates = self.items.resolve(request.candidates)
        self.items.resolve_lists((), request.candidates)  # raises an error if one is given twice
        (target,) = self.items.resolve([request.item])
        if candidates and target not in candidates:
            raise DataError(f"the item {target.title!r} is not among the candidates")
        if ranker not in self.models:
            return self._explain_by(ranker, history, times, target, candidates)
        answers = candidates or [target]
        most = min(EXPLAINED, bodies.MAX_EXPLAINED_PAIRS // len(answers))
        titles = _titles(history, candidates, answers)
        unread, questions = without_each(self.encoder, self.template, *titles, most=most)
        first, column = len(history) - (len(questions) - 1), answers.index(target)

        def answer(scores: Scores) -> bodies.ExplainAnswer:
            table = np.stack(scores)
            logps, shares = table[:, column], softmax(table, axis=1)[:, column]
            effects = list(
                zip([item.item_id for item in history[first:]], (logps[0] - logps[1:]).tolist(), strict=True)
            )
            found = Reasons("leave-one-out", float(logps[0]), effects, not_explained=first - unread)
            # Without candidates, the item has no competitors and therefore no share.
            return _explanation(ranker, target, history, found, shares.tolist() if candidates else None)

        return Prepared(ranker, questions, answer)

    def _explain_by(
        self,
        ranker: str,
        history: Sequence[Item],
        times: Sequence[int],
        target: Item,
        candidates: Sequence[Item],
    ) -> Prepared[bodies.ExplainAnswer]:
        """Prepare an explanation by a ranker that is not a language model."""
        if not candidates and not self._recommends(ranker):
            raise DataError(f"{ranker} can only explain scores among candidates: send candidates")
        listed = tuple(item.item_id for item in candidates) or tuple(self.items.catalogue.ids)
        past = tuple(item.item_id for item in history)
        query = Query(past, listed, history_times=tuple(times))

        def answer(found: list[Reasons]) -> bodies.ExplainAnswer:
            return _explanation(ranker, target, history, found[0])

        return Prepared(ranker, [Why(query, target.item_id, bool(candidates))], answer)

    def recommend(self, request: bodies.RecommendRequest) -> Prepared[bodies.RecommendAnswer]:
        """Prepare a recommendation from the items of the catalogue that the request's rules allow.

        Raise errors of `rank`, UnknownUserError or RulesError.
        """
        prepared = self._recommended(request, [self._history(request)])
        return Prepared(prepared.ranker, prepared.questions, lambda outcomes: prepared.answer(outcomes)[0])

    def recommend_users(self, request: bodies.RecommendUsersRequest) -> Prepared[bodies.RecommendUsersAnswer]:
        """Prepare recommendations to several users, which are scored together; raise errors of `recommend`."""
        asked = [bodies.AfterUser(user_id=user) for user in request.user_ids]
        prepared = self._recommended(request, [self._history(of_user) for of_user in asked])

        def answer(outcomes: list[Any]) -> bodies.RecommendUsersAnswer:
            return bodies.RecommendUsersAnswer(answers=prepared.answer(outcomes))

        return Prepared(prepared.ranker, prepared.questions, answer)

    def _recommended(
        self, request: bodies.RecommendRequest | bodies.RecommendUsersRequest, histories: Sequence[_History]
    ) -> Prepared[list[bodies.RecommendAnswer]]:
        """Prepare a recommendation after each of these histories, under the rules of a request."""
        ranker = self._ranker(request.ranker or (self.for_new if request.exclude_seen else None))
        if not self._recommends(ranker):
            raise DataError(f"{ranker} cannot recommend from all items: send candidates to /v1/rank")
        repeats = self.data.keeps_repeats
        selection = Selection(
            self.items.catalogue,
            request,
            request.k,
            self._popular,
            repeats=repeats,
            functions=False,
            new=self._new,
        )
        questions = [
            selection.question([item.item_id for item in history], seen, times) for history, seen, times in histories
        ]

        def answer(outcomes: list[tuple[Recommendation, bool]]) -> list[bodies.RecommendAnswer]:
            unmatched, answers = _unmatched(selection), []
            for (best, shortened), (history, _, _) in zip(outcomes, histories, strict=True):
                name = self._popular.name if self._popular and best.method == "popularity" else ranker
                items = [self.items.item(i) for i in best.item_ids]
                answers.append(
                    bodies.RecommendAnswer(
                        ranker=name,
                        history=history if request.show_history else None,
                        history_shortened=shortened,
                        ranking=_ranking(items, best.logps.astype(np.float64), name in self.models),
                        exact=best.exact,
                        unmatched=unmatched,
                    )
                )
            return answers

        return Prepared(ranker, questions, answer)

    def _history(self, request: bodies.AfterUser) -> _History:
        """Return the history of a request, after the user's in the log, all seen items, and the times of the log."""
        history = self.items.resolve(request.history)
        seen = [item.item_id for item in history]
        if request.user_id is None:
            return history, seen, ()
        shown, log, times = self._logged.past(request.user_id)
        return [*map(self.items.item, shown), *history], [*log, *seen], times

    def related(self, relation: Relation, request: bodies.RelatedRequest) -> Prepared[bodies.RelatedAnswer]:
        """Prepare a list of related items (`prefrec.recommend.related`); raise errors of `recommend`."""
        ranker = self._ranker(request.ranker)
        (item,) = self.items.resolve([request.item])
        rules = Rules.model_validate(request.model_dump(include={*ItemRules.model_fields}))
        selection = Selection(self.items.catalogue, rules, request.k, self._popular, functions=False)
        question = Beside(relation, selection.question([item.item_id], [item.item_id]))

        def answer(found: list[tuple[Recommendation, str]]) -> bodies.RelatedAnswer:
            ((best, by),) = found
            lines = [
                bodies.RelatedItem(**dict(self.items.item(i)), rank=rank, score=float(score))
                for rank, (i, score) in enumerate(zip(best.item_ids, best.logps, strict=True), 1)
            ]
            return bodies.RelatedAnswer(by=by, item=item, items=lines, unmatched=_unmatched(selection))

        return Prepared(ranker, [question], answer)

    def users(self, query: str, limit: int) -> list[str]:
        """Return at most `limit` users of the log whose ids begin with `query`, sorted."""
        begin = bisect_left(self._logged.ids, query)
        return [user for user in self._logged.ids[begin : begin + limit] if user.startswith(query)]

    def example(self, row: int) -> bodies.ExampleAnswer:
        """Return an example of the split; after the last one comes the first. Raise DataError if there is none."""
        if not self.examples:
            raise DataError("the run has no test examples to show")
        row %= len(self.examples)
        example, item = self.examples[row], self.items.item
        history = [item(i) for i in example.history]
        candidates = [item(i) for i in example.candidates]
        return bodies.ExampleAnswer(
            row=row, rows=len(self.examples), history=history, candidates=candidates, target=item(example.target)
        )

    def warm_up(self, rankers: Collection[str]) -> None:
        """Choose the layout and run one pass of each of these rankers, before clients wait for it."""
        names: list[ItemName] = [ById(item_id=i) for i in self.items.catalogue.ids[:3]]
        for number, ranker in enumerate(rankers, 1):
            say(f"Loading and trying {escape(ranker)} ({number} of {len(rankers)}) …")
            request = bodies.RankRequest(history=names, candidates=names, ranker=ranker)
            self.submit(self.rank(request), timeout=600).result()
        # The default may be a ranker that only ranks candidates.
        if able := next((name for name in self.rankers if self._recommends(name)), None):
            asked = bodies.RecommendRequest(history=names[:1], k=1, ranker=able)
            self.submit(self.recommend(asked), timeout=600).result()

    def close(self, timeout: float | None = None) -> None:
        """Answer the requests in the queue, end both threads, and let go of the run."""
        self.batcher.close(timeout)
        self._encoders.shutdown(wait=False)
        # FastAPI never forgets the handlers of an application, and these hold the engine.
        for held in ("data", "items", "encoder", "examples", "_scorer", "_popular", "_logged", "_new"):
            self.__dict__.pop(held, None)

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the engine if what is done in the context fails: its threads would hold the run in memory."""
        try:
            yield
        except Exception:
            self.close()
            raise

    @cached_property
    def _popular(self) -> Popular | None:
        return Popular.of(self.data)

    @cached_property
    def _logged(self) -> LoggedUsers:
        return LoggedUsers(self.data)

    def _ranker(self, name: str | None) -> str:
        if name is not None and name not in self.rankers:
            raise UnknownRankerError(f"no ranker {name!r}: expected one of {', '.join(self.rankers)}")
        return name or self.rankers[0]

    def _recommends(self, ranker: str) -> bool:
        """Return True if a ranker can rank the full catalogue."""
        return ranker in self.models or self._scorer.others[ranker].full is not None

    def _tokens(self, question: Asked) -> int:
        if isinstance(question, Query):
            return 8 * (len(question.history) + len(question.candidates))  # about as many as titles have
        if isinstance(question, Question | Why | Beside):
            return self._scorer.catalogue_tokens
        from prefrec.lm.packing import tokens_of  # here, because it needs torch

        return tokens_of(question)

    def _work(self, kind: tuple[str, type], questions: Sequence[Any]) -> Sequence[Any]:
        ranker, question_type = kind
        if question_type is Question:
            return self._scorer.recommend(ranker, questions)
        if question_type is Beside:
            return self._scorer.related(ranker, questions, self.data)
        if question_type is Why:
            return self._scorer.explain(ranker, questions)
        return self._scorer.score(ranker, questions)


def _unmatched(selection: Selection) -> list[str]:
    """Return what the rules name and no item has, each once."""
    rules, known = selection.rules, selection.catalogue.index
    unmatched = []
    for rule, ids in (("allow", rules.allow or ()), ("deny", rules.deny)):
        unmatched += [f"{rule}: {item}" for item in ids if item not in known]
    unmatched += [f"boost: {column}={value}" for column, value in selection.unmatched]
    return list(dict.fromkeys(unmatched))


def _explanation(
    ranker: str,
    target: Item,
    history: Sequence[Item],
    found: Reasons,
    shares: Sequence[float] | None = None,
) -> bodies.ExplainAnswer:
    """Return the answer about a history, the last items of which have effects.

    `shares` are those of the item among the candidates, with the whole history and without each of these items.
    """
    first = len(history) - len(found.effects)
    influences = []
    for n, (item, (_, effect)) in enumerate(zip(history[first:], found.effects, strict=True)):
        parts = {name: of_part[n] for name, of_part in found.parts.items()}
        change = shares[0] - shares[1 + n] if shares else None
        influences.append(
            bodies.Influence(**dict(item), position=first + n, effect=effect, parts=parts, share_change=change)
        )
    return bodies.ExplainAnswer(
        ranker=ranker,
        item=target,
        score=found.score,
        method=found.method,
        rest=found.rest,
        share=shares[0] if shares else None,
        history=list(history),
        history_shortened=first > found.not_explained,
        not_explained=found.not_explained,
        influences=influences,
    )


def _titles(*lists: Sequence[Item]) -> list[list[str]]:
    return [[item.title for item in items] for items in lists]


def _ranking(items: Sequence[Item], scores: NDArray[np.float64], is_model: bool) -> list[bodies.RankedItem]:
    """Return the lines of a ranking of items, best first."""
    shares = (
        softmax(scores).tolist() if items and is_model else [None] * len(items)
    )  # softmax fails for an empty array
    return [
        bodies.RankedItem(**dict(item), rank=n + 1, score=float(scores[n]), share=shares[n])
        for n, item in enumerate(items)
    ]
