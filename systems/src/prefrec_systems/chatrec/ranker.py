"""Chat-REC as a ranker: the retriever's best items in the order that a language model gives them."""

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
from prefrec.rankers.reference import RandomRanker
from prefrec.rankers.rows import pad_scores
from prefrec_systems.chatrec.answer import Answer, read_answer
from prefrec_systems.chatrec.chat import ChatModel
from prefrec_systems.chatrec.profile import Profiles
from prefrec_systems.chatrec.prompt import question


@dataclass
class Counts:
    """How answers were read: all, those without a single title, titles that were not in the list, titles left out."""

    answers: int = 0
    unreadable: int = 0
    invented: int = 0
    left_out: int = 0


class ChatRecRanker:
    """Ranks by retrieval, then by a language model's order of the items retrieved.

    Scores are places: the item ranked first of C scores C, the last 1. Items that the answer leaves out follow those
    it names, in the retriever's order, and items that were not shown follow them. An answer that names none of the
    items leaves the retriever's order. Of items with the same score of the retriever a hash decides, not their
    place in the list.

    Args:
        name: shown in tables.
        retriever: any other ranker.
        chat: the language model.
        catalogue: titles of all items.
        profiles: of the users.
        domain: what the items are, as the data says.
        keep: items shown.
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
        """Places of each example's candidates, best first, by the retriever."""
        if not examples:
            return []
        scores, ties = self.retriever.score(examples), self._ties.score(examples)
        orders = np.lexsort((-ties, -scores), axis=-1)
        return [order[: len(e.candidates)].tolist() for order, e in zip(orders, examples, strict=True)]

    def ask(self, examples: Sequence[RankingExample]) -> list[Answer]:
        """What the language model answers to each example; indices are places among the `keep` items shown."""
        return [answer for _, answer in self._asked(examples)]

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Scores [B, C]: C for the item in the first place, 1 for that in the last."""
        rows = []
        for retrieved, answer in self._asked(examples):
            order = self.order(retrieved, answer)
            row = np.empty(len(order))
            row[order] = np.arange(len(order), 0, -1)
            rows.append(row)
        return pad_scores(rows)

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """The first entry of each answer's list as it was written, so that invented titles count as invalid."""
        return [answer.listed[0] if answer.listed else answer.text for answer in self.ask(examples)]

    def order(self, retrieved: Sequence[int], answer: Answer) -> list[int]:
        """All places, best first: those that the answer names, the rest as retrieved."""
        named = [retrieved[n] for n in answer.order]
        return named + [place for place in retrieved if place not in set(named)]

    def question(self, example: RankingExample, retrieved: Sequence[int]) -> str:
        """The text that is put to the language model."""
        titles = self.catalogue.titles_of
        shown = titles(example.candidates[place] for place in retrieved[: self.keep])
        profile = self.profiles.of(example.user_id, example.history)
        return question(profile, titles(example.history), shown, self.domain)

    def _asked(self, examples: Sequence[RankingExample]) -> list[tuple[list[int], Answer]]:
        """Order of retrieval and answer of each example; known answers are not asked for again."""
        new = [e for key, e in {_key(e): e for e in examples}.items() if key not in self._known]
        if new:
            orders = dict(zip(new, self.retrieve(new), strict=True))
            mine = processes.share(new)
            conversations = [[{"role": "user", "content": self.question(e, orders[e])}] for e in mine]
            texts = self.chat.answer(conversations, f"{self.name}: reordering")
            said = dict(processes.pool(list(zip(mine, texts, strict=True))))
            for example in new:
                self._known[_key(example)] = orders[example], self._read(example, orders[example], said[example])
            self._tell()
        return [self._known[_key(e)] for e in examples]

    def _read(self, example: RankingExample, retrieved: Sequence[int], text: str) -> Answer:
        shown = self.catalogue.titles_of(example.candidates[place] for place in retrieved[: self.keep])
        answer = read_answer(text, shown)
        self.counts.answers += 1
        self.counts.unreadable += not answer.order
        self.counts.invented += len(answer.invented)
        self.counts.left_out += len(shown) - len(answer.order) if answer.order else 0
        return answer

    def _tell(self) -> None:
        c = self.counts
        say(
            f"{escape(self.name)}: {c.answers} answers, {c.unreadable} unreadable (the retriever's order stays), "
            f"{c.invented} entries name no item shown, {c.left_out} items shown were left out"
        )


def _key(example: RankingExample) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """What the question depends on; the target is no part of it."""
    return example.user_id, example.history, example.candidates
