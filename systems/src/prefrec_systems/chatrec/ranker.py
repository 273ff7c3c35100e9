"""Chat-REC as a ranker: the retriever's best items, in the order that a language model gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from prefrec import processes
from prefrec.console import say
from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import RandomRanker
from prefrec.rankers.matrices import pad_scores
from prefrec_systems.chatrec.answer import Answer, read_answer
from prefrec_systems.chatrec.chat import ChatModel
from prefrec_systems.chatrec.profile import Profiles
from prefrec_systems.chatrec.prompt import question


@dataclass
class Counts:
    """Counts of all answers, of unreadable ones, of entries that name no shown title, and of titles left out."""

    answers: int = 0
    unreadable: int = 0
    invented: int = 0
    left_out: int = 0


class ChatRecRanker:
    """Ranks by retrieval, then by a language model's order of the retrieved items.

    Scores are places: of C items the first scores C, the last 1. Items that the answer leaves out follow those that
    it
    names, in the retriever's order; items that were not shown come last. If the answer names none of the items, the
    retriever's order stays. A hash breaks ties of the retriever, so that an item's place in the list has no
    influence.

    Args:
        retriever: any other ranker.
        domain: kind of the items (`prefrec_systems.chatrec.prompt.WORDS`).
        keep: number of items shown.
        seed: of the hash.
    """

    def __init__(
        self,
        name: str,
        retriever: Ranker,
        chat: ChatModel,
        catalogue: Catalogue,
        profiles: Profiles,
        *,
        domain: str = "generic",
        keep: int = 20,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.retriever = retriever
        self.chat = chat
        self.catalogue = catalogue
        self.profiles = profiles
        self.domain = domain
        self.keep = keep
        self.counts = Counts()
        self._ties = RandomRanker(seed)
        self._known: dict[tuple[str, tuple[str, ...], tuple[str, ...]], tuple[list[int], Answer]] = {}

    def retrieve(self, examples: Sequence[RankingExample]) -> list[list[int]]:
        """Return the places of each example's candidates, best first, by the retriever."""
        if not examples:
            return []
        scores, ties = self.retriever.score(examples), self._ties.score(examples)
        orders = np.lexsort((-ties, -scores), axis=-1)
        return [order[: len(e.candidates)].tolist() for order, e in zip(orders, examples, strict=True)]

    def ask(self, examples: Sequence[RankingExample]) -> list[Answer]:
        """Return the answer to each example; its indices are places among the `keep` items shown."""
        return [answer for _, answer in self._answers(examples)]

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C]: C for the first item, 1 for the last."""
        rows = []
        for retrieved, answer in self._answers(examples):
            order = self.order(retrieved, answer)
            row = np.empty(len(order))
            row[order] = np.arange(len(order), 0, -1)
            rows.append(row)
        return pad_scores(rows)

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the first entry of each answer's list as written, so that invented titles count as invalid."""
        return [answer.listed[0] if answer.listed else answer.text for answer in self.ask(examples)]

    def order(self, retrieved: Sequence[int], answer: Answer) -> list[int]:
        """Return all places, best first: those that the answer names, then the rest as retrieved."""
        named = [retrieved[n] for n in answer.order]
        return named + [place for place in retrieved if place not in set(named)]

    def question(self, example: RankingExample, retrieved: Sequence[int]) -> str:
        """Return the text that the language model is asked."""
        profile = self.profiles.lines(example.user_id, example.history)
        history = self.catalogue.titles_of(example.history)
        return question(profile, history, self._shown(example, retrieved), self.domain)

    def _shown(self, example: RankingExample, retrieved: Sequence[int]) -> list[str]:
        return self.catalogue.titles_of(example.candidates[place] for place in retrieved[: self.keep])

    def _answers(self, examples: Sequence[RankingExample]) -> list[tuple[list[int], Answer]]:
        """Return retrieval order and answer of each example; known answers are not requested again."""
        new = [e for key, e in {_key(e): e for e in examples}.items() if key not in self._known]
        if new:
            orders = dict(zip(new, self.retrieve(new), strict=True))
            own = processes.share(new)
            conversations = [[{"role": "user", "content": self.question(e, orders[e])}] for e in own]
            texts = self.chat.answer(conversations, f"{self.name}: reordering")
            answers = dict(processes.pool(list(zip(own, texts, strict=True))))
            for example in new:
                self._known[_key(example)] = orders[example], self._read(example, orders[example], answers[example])
            self._report()
        return [self._known[_key(e)] for e in examples]

    def _read(self, example: RankingExample, retrieved: Sequence[int], text: str) -> Answer:
        shown = self._shown(example, retrieved)
        answer = read_answer(text, shown)
        self.counts.answers += 1
        self.counts.unreadable += not answer.order
        self.counts.invented += len(answer.invented)
        self.counts.left_out += len(shown) - len(answer.order) if answer.order else 0
        return answer

    def _report(self) -> None:
        c = self.counts
        say(
            f"{escape(self.name)}: {c.answers} answers, {c.unreadable} unreadable (the retriever's order stays), "
            f"{c.invented} entries name no shown item, {c.left_out} shown items were left out"
        )


def _key(example: RankingExample) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return what the question depends on; the target does not belong to it."""
    return example.user_id, example.history, example.candidates
