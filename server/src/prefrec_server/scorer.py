"""The rankers of a server: language models score choice sets in bounded passes, other rankers score queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Catalogue, PreparedData, Query
from prefrec.errors import check_finite
from prefrec.rankers.base import Ranker, Recommendation
from prefrec.rankers.config import BATCH_SIZE
from prefrec.recommend.explain import Reasons, reasons
from prefrec.recommend.questions import Question, answer_all, best_items
from prefrec.recommend.related import related_by_data, related_by_ranker, related_items
from prefrec.recommend.rules import Relation
from prefrec.resources import loaded_torch
from prefrec.stages.base import Loaded, RankerStage

if TYPE_CHECKING:
    from torch import nn

    from prefrec.rankers import CatalogueRanker, LMRanker


@dataclass(frozen=True)
class Why:
    """A question for the reasons of an item's score among the candidates of a query.

    If not `is_listed`, the candidates are the whole catalogue.
    """

    query: Query
    item: str
    is_listed: bool


@dataclass(frozen=True)
class Beside:
    """A question for items that are related to the one in its history."""

    relation: Relation
    question: Question


Scores = list[NDArray[np.float64]]
MAX_CALLS = 64
"""Most model calls per request on a catalogue too large to score completely; then the best items so far count."""


class Scorer:
    """Scores questions with the rankers of a run. It switches adapters, so only one thread at a time may use it.

    Args:
        models: ranker → a causal LM, or a PEFT model around one. Rankers may share a model.
        adapters: ranker → name of its adapter in its model; None for the base or a whole model.
        lm: one of the models as a ranker, whose prompt and layout all share; None: there are no models.
        catalogue: all items.

    Attributes:
        others: name → stage of a ranker of another kind, which loads it once.
        before_call: called before every call of a model; an error that it raises prevents the call.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        adapters: Mapping[str, str | None],
        lm: LMRanker | None,
        catalogue: Catalogue,
    ) -> None:
        self.models = {name: model.eval() for name, model in models.items()}
        self.others: dict[str, RankerStage] = {}
        self._related: dict[tuple[Relation, str], Ranker] = {}
        self._by_data: dict[Relation, Ranker] = {}
        self.before_call: Callable[[], None] = lambda: None
        for model in set(self.models.values()):
            model.register_forward_pre_hook(lambda *_: self.before_call())
        self.adapters = dict(adapters)
        self.items = catalogue
        if lm is not None:
            from prefrec.rankers.catalogue import CatalogueRanker  # here, because it needs torch

            self.lm, self.catalogue = lm, CatalogueRanker(lm)

    @property
    def catalogue_tokens(self) -> int:
        """Approximate number of tokens of a question about all items."""
        if not self.models or self.lm.has_items:
            return 128  # 16 histories share a pass on a CPU; more are not faster
        from prefrec.rankers.catalogue import EXACT_NODES

        within, items = self.lm.within, len(self.lm.catalogue)
        # Titles share prefixes, so each adds about four tokens.
        return min(EXACT_NODES, 4 * items if within is None else len(within.trie.inner))

    def score(self, ranker: str, questions: Sequence[Any]) -> Scores:
        """Return the scores [C] of each question; for a language model, log-probabilities of the answers.

        Questions are choice sets for a language model, and queries for other rankers. Raise ModelError if a
        score is not finite.
        """
        if ranker in self.others:
            sizes = [len(query.candidates) for query in questions]
            scores = self.others[ranker].load(BATCH_SIZE).score(questions)
        else:
            sizes = [len(choice_set.answers) for choice_set in questions]
            with self.active(ranker) as model:
                scores = self.lm.scorer.score(questions, model).double().cpu().numpy()
        out: Scores = [row[:size] for size, row in zip(sizes, scores, strict=True)]
        check_finite(ranker, *out)
        return out

    def explain(self, ranker: str, questions: Sequence[Why]) -> list[Reasons]:
        """Return the reasons for each question's score, by a ranker that is not a language model.

        Raise ModelError if a score is NaN.
        """
        stage = self.others[ranker]
        with _no_gradients():
            full = stage.full or stage
            rankers = [(stage if asked.is_listed else full).load(BATCH_SIZE) for asked in questions]
            return [reasons(ranker, q.query, q.item) for ranker, q in zip(rankers, questions, strict=True)]

    def related(
        self, ranker: str, questions: Sequence[Beside], data: PreparedData
    ) -> list[tuple[Recommendation, str]]:
        """Return the most related items per question, and the name of what ranked them."""
        answers = []
        for asked in questions:
            key = asked.relation, ranker
            if key not in self._related:
                self._related[key] = self._related_ranker(asked.relation, ranker, data)
            by = self._related[key]
            answers.append((related_items(by, asked.question), by.name))
        return answers

    def _related_ranker(self, relation: Relation, ranker: str, data: PreparedData) -> Ranker:
        asked = self.others[ranker].load(BATCH_SIZE) if ranker in self.others else SharedLM(ranker, self, self.lm)
        if own := related_by_ranker(relation, asked):
            return own
        if relation not in self._by_data:  # once for all rankers
            self._by_data[relation] = related_by_data(relation, data)
        return self._by_data[relation]

    def recommend(self, ranker: str, questions: Sequence[Question]) -> list[tuple[Recommendation, bool]]:
        """Return the best items of the catalogue per question, and whether the history was shortened to fit.

        Raise ModelError if a score is NaN, or a log-probability is not finite.
        """
        other, answers = self.others.get(ranker), []
        with _no_gradients():
            if other and other.full:
                full = other.full.load(BATCH_SIZE)
                for question in questions:
                    before = self._shortened
                    (best,) = answer_all(full, [question])
                    answers.append((best, self._shortened > before))
                return answers
            with self.active(ranker):
                known = self.lm.item_logps([q.history for q in questions])
                for question, logps in zip(questions, known, strict=True):
                    before = self._shortened
                    best = best_items(self.catalogue, question, MAX_CALLS, logps)
                    # Histories of item-ID tokens are encoded together, before the first answer.
                    is_short = self._shortened > before if logps is None else self._is_too_long(question.history)
                    answers.append((best, is_short))
        return answers

    def _is_too_long(self, history: Sequence[str]) -> bool:
        """Return True if a history of item-ID tokens does not fit into the prompt."""
        titles = self.items.titles_of(history)
        return self.lm.encoder.fit(self.lm.template, titles, (), ())[1] > 0

    @property
    def _shortened(self) -> int:
        """How many histories the models' prompts have shortened so far."""
        return self.lm.encoder.shortened if self.models else 0

    def part(self, stage: RankerStage) -> Loaded:
        """Return the stage of a model for rankers that depend on it; it shares the loaded model."""
        return Loaded(stage, *(SharedLM(stage.name, self, ranker) for ranker in (self.lm, self.catalogue)))

    @contextmanager
    def active(self, ranker: str) -> Iterator[nn.Module]:
        """Yield the model of a ranker with its adapter active, and set it as the model of `lm`."""
        from peft import PeftModel

        model, adapter = self.models[ranker], self.adapters[ranker]
        self.lm.model = model
        if not isinstance(model, PeftModel):
            yield model
        elif adapter is None:
            with model.disable_adapter():
                yield model
        else:
            if model.active_adapter != adapter:
                model.set_adapter(adapter, inference_mode=True)
            yield model


@dataclass(eq=False)
class SharedLM:
    """One of a scorer's language models, queried through `ranker`."""

    name: str
    scorer: Scorer
    ranker: LMRanker | CatalogueRanker

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates; −inf in empty columns."""
        with self.scorer.active(self.name):
            return self.ranker.score(queries)

    def item_vectors(self) -> tuple[Sequence[str], NDArray[np.float32]] | None:
        """Return ids [I] and vectors [I, D] of item-ID tokens; None without these."""
        with self.scorer.active(self.name):
            return self.scorer.lm.item_vectors()


def _no_gradients() -> AbstractContextManager[Any]:
    """Return torch's context without gradients, or an empty one if no ranker has loaded torch."""
    torch = loaded_torch()
    return nullcontext() if torch is None else torch.no_grad()
