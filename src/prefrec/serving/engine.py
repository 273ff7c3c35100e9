"""From a request's names to choice sets, and from their scores to an answer; no HTTP in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.errors import DataError
from prefrec.lm.items import ItemEncoder
from prefrec.lm.packing import tokens_of
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.catalogue import Recommendation
from prefrec.report.examples import shares
from prefrec.serving.batcher import Batcher, Load, Pass
from prefrec.serving.bodies import (
    ExampleAnswer,
    ExplainAnswer,
    ExplainRequest,
    Influence,
    ItemBody,
    ItemName,
    RankAnswer,
    RankedItem,
    RankRequest,
    RecommendAnswer,
    RecommendRequest,
)
from prefrec.serving.items import Item, ItemIndex
from prefrec.serving.scorer import Scorer, Scores

Body = TypeVar("Body")


class UnknownRankerError(DataError):
    """The run has no ranker of this name."""


@dataclass(frozen=True)
class Question:
    """A job for the worker: choice sets to score under a ranker."""

    ranker: str
    choice_sets: tuple[ChoiceSet, ...]


@dataclass(frozen=True)
class CatalogueQuestion:
    """A job for the worker: the best `k` items of the whole catalogue for a history of item ids."""

    ranker: str
    history: tuple[str, ...]
    k: int


@dataclass(frozen=True)
class Asked(Generic[Body]):
    """A request on its way: what the worker is asked, and what becomes of its answer."""

    question: Question | CatalogueQuestion
    answer: Callable[[Any], Body]


class Engine:
    """Answers requests about one run. One thread encodes them, another scores them, both for all clients.

    Args:
        scorer: of the run's rankers; the first is the default.
        items: of the run's catalogue.
        encoder: of the model's tokenizer.
        template: the prompt.
        examples: rows to show, for people who try the server out.
        max_queue: requests that may wait, to be encoded or to be scored.
        max_batch: requests that may share a pass; None: as many as the scorer's budget of tokens holds.
        on_pass: told of every pass of the worker.
    """

    def __init__(
        self,
        scorer: Scorer,
        items: ItemIndex,
        encoder: PromptEncoder | ItemEncoder,
        template: PromptTemplate,
        *,
        examples: Sequence[RankingExample] = (),
        max_queue: int = 256,
        max_batch: int | None = None,
        on_pass: Callable[[Pass], None] = lambda done: None,
    ) -> None:
        self.items = items
        self.encoder = encoder
        self.template = template
        self.examples = examples
        self.rankers = list(scorer.adapters)
        self._scorer = scorer
        # A fast tokenizer keeps settings of a call in itself: two threads in it at once would mix them up.
        self._encoding = threading.Lock()
        # A thread that waits for a lock cannot be called off when its client has gone; a job of a pool can.
        self._encoders = ThreadPoolExecutor(1, thread_name_prefix="prefrec-encoder")
        self._preparing, self._counting = 0, threading.Lock()
        self.batcher: Batcher[Question | CatalogueQuestion, Any] = Batcher(
            self._work,
            load=self._load,
            room=scorer.max_tokens,
            max_jobs=max_batch,
            max_queue=max_queue,
            on_pass=on_pass,
        )

    def prepare(self, make: Callable[[], Asked[Body]]) -> Future[Asked[Body]]:
        """Queue a call of `rank`, `explain` or `recommend`.

        Raises:
            QueueFullError: as many requests wait as may, to be encoded or to be scored.
            StoppedError: `close` has been called.
        """
        with self._counting:
            self.batcher.check_room(self._preparing)
            self._preparing += 1
        future = self._encoders.submit(make)
        future.add_done_callback(self._prepared)
        return future

    def submit(self, asked: Asked[Body], timeout: float) -> Future[Any]:
        """Queue a request that is ready; see `Batcher.submit` for what it raises."""
        return self.batcher.submit(asked.question, timeout)

    def ranker(self, name: str | None) -> str:
        """The ranker of this name; the default for None.

        Raises:
            UnknownRankerError: there is none.
        """
        if name is not None and name not in self.rankers:
            raise UnknownRankerError(f"no ranker {name!r}: expected one of {', '.join(self.rankers)}")
        return name or self.rankers[0]

    def rank(self, request: RankRequest) -> Asked[RankAnswer]:
        """A ranking request, ready for the worker.

        Raises:
            UnknownRankerError, UnknownItemsError, DataError: a name is wrong, or an item stands there twice.
            TokenizerError: the candidates do not fit into the prompt.
        """
        ranker = self.ranker(request.ranker)
        history, candidates = self._resolve(request.history, request.candidates)
        choice_set, dropped = self._encode(history, candidates, candidates)

        def answer(scores: Scores) -> RankAnswer:
            return RankAnswer(
                ranker=ranker,
                history=[_body(i) for i in history],
                history_shortened=dropped > 0,
                ranking=_ranking(candidates, scores[0]),
            )

        return Asked(Question(ranker, (choice_set,)), answer)

    def explain(self, request: ExplainRequest) -> Asked[ExplainAnswer]:
        """A leave-one-out request: the history as the prompt shows it, and that without each of its items in turn.

        Raises:
            As `rank`, and DataError where there are candidates and the target is none of them.
        """
        ranker = self.ranker(request.ranker)
        history, candidates = self._resolve(request.history, request.candidates)
        target = self.items.item(*self.items.resolve([request.target]))
        if candidates and target not in candidates:
            raise DataError(f"the target {target.title!r} is not among the candidates")
        asked = candidates or [target]
        whole, first = self._encode(history, candidates, asked)
        shown = history[first:]
        without = [self._encode(shown[:i] + shown[i + 1 :], candidates, asked)[0] for i in range(len(shown))]
        column = asked.index(target)

        def share(logps: NDArray[np.float64]) -> float | None:
            return float(shares(logps.tolist())[column]) if candidates else None

        def answer(scores: Scores) -> ExplainAnswer:
            logp, probability = float(scores[0][column]), share(scores[0])
            return ExplainAnswer(
                ranker=ranker,
                target=_body(target),
                logp=logp,
                probability=probability,
                history_shortened=first > 0,
                influences=[
                    _influence(item, first + i, logp, float(left[column]), probability, share(left))
                    for i, (item, left) in enumerate(zip(shown, scores[1:], strict=True))
                ],
            )

        return Asked(Question(ranker, (whole, *without)), answer)

    def recommend(self, request: RecommendRequest) -> Asked[RecommendAnswer]:
        """A question about the whole catalogue, ready for the worker; what is in the history is left out.

        Raises:
            UnknownRankerError, UnknownItemsError: a name is wrong.
        """
        ranker = self.ranker(request.ranker)
        history = [self.items.item(i) for i in self.items.resolve(request.history)]

        def answer(outcome: tuple[Recommendation, bool]) -> RecommendAnswer:
            best, shortened = outcome
            found = [self.items.item(i) for i in best.item_ids]
            return RecommendAnswer(
                ranker=ranker,
                history=[_body(i) for i in history],
                history_shortened=shortened,
                ranking=_ranking(found, best.logps.astype(np.float64)) if found else [],
                proven=best.proven,
            )

        return Asked(CatalogueQuestion(ranker, tuple(i.item_id for i in history), request.k), answer)

    def example(self, row: int) -> ExampleAnswer:
        """A row of the data, its items by name; rows are counted round.

        Raises:
            DataError: there are none.
        """
        if not self.examples:
            raise DataError("the run has no rows to show")
        row %= len(self.examples)
        example = self.examples[row]
        return ExampleAnswer(
            row=row,
            rows=len(self.examples),
            history=[_body(self.items.item(i)) for i in example.history],
            candidates=[_body(self.items.item(i)) for i in example.candidates],
            target=_body(self.items.item(example.target)),
        )

    def warm_up(self) -> None:
        """Choose the layout and make one pass under every ranker, before clients wait for it."""
        first = [self.items.item(i) for i in self.items.catalogue.ids[:3]]
        choice_set, _ = self._encode(first, first, first)
        self._scorer.scorer.settle([choice_set])
        for ranker in self.rankers:
            self.batcher.submit(Question(ranker, (choice_set,)), timeout=600).result()
        self.batcher.submit(CatalogueQuestion(self.rankers[0], (first[0].item_id,), 1), timeout=600).result()

    def close(self, timeout: float | None = None) -> None:
        """Answer what waits to be scored, and end both threads."""
        self.batcher.close(timeout)
        self._encoders.shutdown(wait=False)

    def _prepared(self, future: Future[Any]) -> None:
        with self._counting:
            self._preparing -= 1

    def _resolve(self, history: Sequence[ItemName], candidates: Sequence[ItemName]) -> tuple[list[Item], list[Item]]:
        found = [self.items.item(i) for i in self.items.resolve([*history, *candidates])]
        shown, asked = found[: len(history)], found[len(history) :]
        if len(set(asked)) < len(asked):
            twice = next(i for n, i in enumerate(asked) if i in asked[:n])
            raise DataError(f"{twice.title!r} stands twice among the candidates; give every item once")
        return shown, asked

    def _encode(
        self, history: Sequence[Item], candidates: Sequence[Item], answers: Sequence[Item]
    ) -> tuple[ChoiceSet, int]:
        """The question as tokens, and how many of the oldest items the prompt had no room for."""
        seen, shown, asked = ([i.title for i in items] for items in (history, candidates, answers))
        with self._encoding:
            return self.encoder.fit(self.template, seen, shown, asked)

    def _load(self, question: Question | CatalogueQuestion) -> Load:
        """Questions under one ranker share a pass while their tokens fit; one about the catalogue is alone."""
        if isinstance(question, CatalogueQuestion):
            return Load(CatalogueQuestion, math.inf)
        return Load(question.ranker, sum(map(tokens_of, question.choice_sets)))

    def _work(self, questions: Sequence[Question | CatalogueQuestion]) -> list[Any]:
        first = questions[0]
        if isinstance(first, CatalogueQuestion):
            return [self._scorer.recommend(first.ranker, first.history, first.k)]
        asked = [q for q in questions if isinstance(q, Question)]
        scores = iter(self._scorer.score(first.ranker, [c for q in asked for c in q.choice_sets]))
        return [[next(scores) for _ in q.choice_sets] for q in asked]


def _ranking(items: Sequence[Item], logps: NDArray[np.float64]) -> list[RankedItem]:
    of = shares(logps.tolist())
    return [
        RankedItem(
            rank=rank, item_id=items[i].item_id, title=items[i].title, logp=float(logps[i]), probability=float(of[i])
        )
        for rank, i in enumerate(np.argsort(-logps, kind="stable"), 1)
    ]


def _influence(
    item: Item, position: int, logp: float, without: float, share: float | None, share_without: float | None
) -> Influence:
    return Influence(
        item_id=item.item_id,
        title=item.title,
        position=position,
        logp_without=without,
        logp_change=logp - without,
        probability_without=share_without,
        probability_change=None if share is None or share_without is None else share - share_without,
    )


def _body(item: Item) -> ItemBody:
    return ItemBody(item_id=item.item_id, title=item.title)
